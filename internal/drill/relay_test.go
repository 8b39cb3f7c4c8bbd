package drill_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"holdfast/internal/drill"
	"holdfast/internal/pg/wal"
)

// messages packs WAL that begins at lsn as a server sends it, in pieces of random lengths.
func messages(lsn wal.LSN, content []byte, random *rand.Rand) (all []byte) {
	for len(content) > 0 {
		n := min(1+random.IntN(200_000), len(content))
		if random.IntN(3) == 0 {
			n = min(1+random.IntN(100), len(content))
		}
		all = append(all, 'd')
		all = binary.BigEndian.AppendUint32(all, uint32(4+25+n))
		all = append(all, 'w')
		all = binary.BigEndian.AppendUint64(all, uint64(lsn))
		all = append(all, make([]byte, 16)...)
		all = append(all, content[:n]...)
		content, lsn = content[n:], lsn+wal.LSN(n)
	}
	return all
}

// WAL that is streamed passes, but no record that creates a tablespace does, whatever pieces it comes in, and where part of it was in a file before.
func TestRelay(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, c := range creations {
		for begin := 1; begin <= 2; begin++ { // segments before come as files
			if begin > 1 && c.refused == 1 { // what refuses a file lets nothing come behind it
				continue
			}
			t.Run(fmt.Sprintf("%s, from segment %d", c.name, begin), func(t *testing.T) {
				dir := t.TempDir()
				run := filepath.Join(dir, "run")
				if err := os.Mkdir(run, 0o700); err != nil {
					t.Fatal(err)
				}
				from, err := wal.ParseLSN(c.from)
				if err != nil {
					t.Fatal(err)
				}
				all := segments(creation(c.path), c.at)
				if begin == 2 {
					dest := filepath.Join(dir, "RECOVERYXLOG")
					if err := os.WriteFile(dest, all[0], 0o600); err != nil {
						t.Fatal(err)
					}
					if err := drill.Guard([]string{"DRILL_OF_HOLDFAST=" + dir, "DRILL_OF_HOLDFAST_FROM=" + c.from}, "000000010000000000000001", dest); err != nil {
						t.Fatal(err)
					}
				}
				in := messages(wal.LSN(begin*segmentSize), bytes.Join(all[begin-1:], nil), random)
				var out bytes.Buffer
				err = drill.Pass(&out, bytes.NewReader(in), run, from, pageSize, segmentSize)
				var space *drill.TablespaceError
				switch {
				case c.refused == 0 && (err != nil || !bytes.Equal(out.Bytes(), in)):
					t.Errorf("%v after %d bytes of %d", err, out.Len(), len(in))
				case c.refused > 0 && (!errors.As(err, &space) || space.Path != spacePath):
					t.Errorf("%v, want %s", err, spacePath)
				case c.refused > 0 && bytes.Contains(out.Bytes(), append([]byte(c.path), 0)):
					t.Error("the end of the record has passed")
				}
				if !bytes.HasPrefix(in, out.Bytes()) {
					t.Error("what passes is not what came")
				}
			})
		}
	}
}

func FuzzRelay(f *testing.F) {
	all := segments(creation(spacePath), pageSize-56)
	f.Add(messages(segmentSize, all[0][:3*pageSize], rand.New(rand.NewPCG(1, 2))), uint64(0))
	f.Add([]byte("Z\x00\x00\x00\x05I"), uint64(1))
	f.Add([]byte("d\xff\xff\xff\xff"), uint64(1<<20))
	f.Add([]byte("d\x00\x00\x00\x1ew\xff\xff\xff\xff\xff\xff\xff\xffaaaaaaaaaaaaaaaaa"), uint64(1<<63))
	f.Fuzz(func(t *testing.T, in []byte, from uint64) {
		var out bytes.Buffer
		_ = drill.Pass(&out, bytes.NewReader(in), t.TempDir(), wal.LSN(from), pageSize, segmentSize) // what it says of nonsense is no matter
		if !bytes.HasPrefix(in, out.Bytes()) {
			t.Error("what passes is not what came")
		}
	})
}
