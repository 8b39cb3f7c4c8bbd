package pgbackrest

import (
	"encoding/json"
	"io"

	"holdfast/internal/store"
)

// What decodes, for tests of it alone.

type Block = block

func (b Block) Fields() (reference, bundle uint32, offset, stored, super, number int64) {
	return b.reference, b.bundle, b.offset, b.stored, b.super, b.number
}

func NewBlock(reference, bundle uint32, offset, stored, super, number int64) Block {
	return Block{reference, bundle, offset, stored, super, number}
}

var ParseBlockMap = parseBlockMap

func NewDecrypter(src io.Reader, passphrase string, raw bool) io.Reader {
	return newDecrypter(src, passphrase, raw)
}

func OpenCodec(name string, src io.Reader) (io.ReadCloser, error) {
	c, err := parseCodec(name)
	if err != nil {
		return nil, err
	}
	return c.open(src), nil
}

func ParseInfo(r io.Reader, visit func(section, key string, value json.RawMessage) error) error {
	return parseInfo(r, visit)
}

// WALFile returns which WAL file an object is.
func WALFile(object string) (name, sum, codec string, ok bool) {
	e, ok := entryOf(store.Object{Name: object})
	return e.name, e.sum, string(e.codec), ok
}
