package drill_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"holdfast/internal/drill"
)

// Sizes of the WAL that the tests make, in bytes.
const (
	segmentSize = 1 << 20
	pageSize    = 8 << 10
)

// creation is a record that creates a tablespace.
func creation(path string) []byte {
	data := append(binary.LittleEndian.AppendUint32(nil, 16400), path+"\x00"...)
	b := append(make([]byte, 24), 255, byte(len(data)))
	b = append(b, data...)
	binary.LittleEndian.PutUint32(b, uint32(len(b)))
	b[16], b[17] = 0, 5
	table := crc32.MakeTable(crc32.Castagnoli)
	binary.LittleEndian.PutUint32(b[20:], crc32.Update(crc32.Checksum(b[24:], table), table, b[:20]))
	return b
}

// segments makes two segments, 1 and 2, and puts record at an offset of the content of both.
func segments(record []byte, at int) (all [2][]byte) {
	content := make([]byte, 2*segmentSize)
	copy(content[at:], record)
	for i := range all {
		for p := range segmentSize / pageSize {
			page := make([]byte, 40, pageSize)
			le := binary.LittleEndian
			le.PutUint16(page, 0xD116)
			le.PutUint64(page[8:], uint64((i+1)*segmentSize+p*pageSize))
			if p == 0 {
				le.PutUint16(page[2:], 2)
				le.PutUint32(page[32:], segmentSize)
				le.PutUint32(page[36:], pageSize)
			} else {
				page = page[:24]
			}
			n := pageSize - len(page)
			all[i] = append(append(all[i], page...), content[:n]...)
			content = content[n:]
		}
	}
	return all
}

const spacePath = "/srv/space"

// inFirst is how long the content of segment 1 is.
const inFirst = segmentSize - 40 - (segmentSize/pageSize-1)*24

// creations are records that create a tablespace, and where they lie.
var creations = []struct {
	name    string
	path    string
	at      int
	from    string // where replay begins
	refused int    // the segment that must not pass; 0 for none
}{
	{"begin", spacePath, 0, "0/0", 1},
	{"over a page's end", spacePath, pageSize - 40 - 16, "0/0", 1},
	{"middle", spacePath, inFirst / 2 &^ 7, "0/0", 1},
	{"begins at the segment's end", spacePath, inFirst - 8, "0/0", 2},
	{"over the segment's end", spacePath, inFirst - 32, "0/0", 2},
	{"second segment", spacePath, inFirst, "0/0", 2},
	{"before the backup", spacePath, 0, "0/100060", 0},
	{"at its first position", spacePath, 0, "0/100028", 1},
	{"segment before the backup's", spacePath, 8, "0/200028", 0},
	{"inside of the data directory", "", 0, "0/0", 0},
	{"relative", "pg_tblspc/1", 0, "0/0", 0},
}

// A record that creates a tablespace is found wherever it lies, and PostgreSQL does not get the file that it ends in.
func TestGuard(t *testing.T) {
	for _, c := range creations {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Mkdir(filepath.Join(dir, "run"), 0o700); err != nil {
				t.Fatal(err)
			}
			refused := 0
			for i, content := range segments(creation(c.path), c.at) {
				dest := filepath.Join(dir, "RECOVERYXLOG")
				if err := os.WriteFile(dest, content, 0o600); err != nil {
					t.Fatal(err)
				}
				err := drill.Guard([]string{"DRILL_OF_HOLDFAST=" + dir, "DRILL_OF_HOLDFAST_FROM=" + c.from}, fmt.Sprintf("0000000100000000%08X", i+1), dest)
				_, gone := os.Stat(dest)
				var space *drill.TablespaceError
				if (err != nil) != (gone != nil) || err != nil && (!errors.As(err, &space) || space.Path != spacePath) {
					t.Errorf("segment %d: %v, file %v", i+1, err, gone)
				}
				if err != nil {
					refused = i + 1
					break
				}
			}
			if refused != c.refused {
				t.Errorf("segment %d is refused, want %d", refused, c.refused)
			}
		})
	}
	if err := drill.Guard(nil, "000000010000000000000001", "/nonexistent"); err != nil {
		t.Errorf("outside of a drill: %v", err)
	}
}
