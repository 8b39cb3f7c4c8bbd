package events

import "holdfast/internal/pg/walrec"

// ReadCatalogue reads a page of pg_class, and its rows one by one as changes of another row, and returns how many there are.
func ReadCatalogue(version int, page []byte) (n int, err error) {
	err = pageRows(page, func(_ uint16, row walrec.Row, _ bool) {
		n++
		for _, row.Same = range []int{0, 3, 30, len(row.Rest)} {
			r, ok := readRow(version, row)
			if !ok {
				continue
			}
			r.name()
			r.class(version)
			class{name: "before", file: 5}.changed(r)
		}
	})
	return n, err
}

// ReadMap reads a pg_filenode.map.
func ReadMap(b []byte) (map[uint32]uint32, error) { return readMap(b) }
