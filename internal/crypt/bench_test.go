package crypt_test

import (
	"bytes"
	"io"
	"testing"
)

// What a core encrypts and decrypts in a second, of 16 MiB as in a WAL segment.
func BenchmarkKinds(b *testing.B) {
	plain := random(16 << 20)
	for name, p := range pairs(b) {
		w, r := open(b, p.write), open(b, p.read)
		sealed := encrypt(b, w, plain)
		for direction, start := range map[string]func() io.ReadCloser{
			"encrypt": func() io.ReadCloser { return w.Encrypt(bytes.NewReader(plain)) },
			"decrypt": func() io.ReadCloser { return r.Decrypt(bytes.NewReader(sealed)) },
		} {
			b.Run(name+"/"+direction, func(b *testing.B) {
				b.SetBytes(int64(len(plain)))
				buffer := make([]byte, 256<<10) // as a store or a codec reads
				for b.Loop() {
					s := start()
					if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{s}, buffer); err != nil {
						b.Fatal(err)
					}
					s.Close()
				}
			})
		}
	}
}
