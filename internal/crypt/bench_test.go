package crypt_test

import (
	"bytes"
	"io"
	"syscall"
	"testing"
	"time"
)

// cpuTime is what the process has used of all cores.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

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
				begin := cpuTime()
				for b.Loop() {
					s := start()
					if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{s}, buffer); err != nil {
						b.Fatal(err)
					}
					s.Close()
				}
				b.ReportMetric(float64(b.N*len(plain))/1e6/(cpuTime()-begin).Seconds(), "MB/cpu-s")
			})
		}
	}
}
