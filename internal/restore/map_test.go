package restore

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

// A map is rewritten for the tablespaces that move, and for those the plan does not know; what comes out reads the same again, and
// leads nowhere else.
func FuzzMoveMap(f *testing.F) {
	f.Add([]byte("16385 /srv/ts1\n16386 /srv/back\\\\slash\n"))
	f.Add([]byte("16385 /line\\\nbreak\n"))
	f.Add([]byte("16386 /no end"))
	f.Add([]byte("nothing\n"))
	f.Add([]byte("../x /y\n /z\n"))
	p := &Plan{Destination: "/data", Tablespaces: []Tablespace{{OID: "16385", To: "/ne\\w\nplace"}}}
	f.Fuzz(func(t *testing.T, was []byte) {
		moved, strays, err := p.moveMap(was)
		if err != nil {
			return
		}
		again, more, err := p.moveMap(moved)
		if err != nil || !bytes.Equal(again, moved) || !slices.Equal(strays, more) {
			t.Errorf("%q becomes %q with %q, and that %q with %q, %v", was, moved, strays, again, more, err)
		}
		for _, line := range strings.SplitAfter(strings.ReplaceAll(string(moved), "\\\n", ""), "\n") {
			oid, to, _ := strings.Cut(line, " ")
			if line != "" && to != "/ne\\\\wplace\n" && to != "/data/holdfast_tablespaces/"+oid+"\n" {
				t.Errorf("%q becomes %q, which leads to %q", was, moved, to)
			}
		}
	})
}
