package restore

import (
	"bytes"
	"testing"
)

// A map is rewritten for the tablespaces that move, and left as it is for others; what comes out reads the same again.
func FuzzMoveMap(f *testing.F) {
	f.Add([]byte("16385 /srv/ts1\n16386 /srv/back\\\\slash\n"))
	f.Add([]byte("16385 /line\\\nbreak\n"))
	f.Add([]byte("16386 /no end"))
	f.Add([]byte("nothing\n"))
	p := &Plan{Tablespaces: []Tablespace{{OID: "16385", To: "/new\nplace\\"}}}
	f.Fuzz(func(t *testing.T, was []byte) {
		moved, err := p.moveMap(was)
		if err != nil {
			return
		}
		again, err := p.moveMap(moved)
		if err != nil || !bytes.Equal(again, moved) {
			t.Errorf("%q becomes %q, and that %q, %v", was, moved, again, err)
		}
		same, err := (&Plan{}).moveMap(was)
		if err != nil || !bytes.Equal(same, was) && !bytes.Equal(same, append(was[:len(was):len(was)], '\n')) {
			t.Errorf("with no tablespace moved %q becomes %q, %v", was, same, err)
		}
	})
}
