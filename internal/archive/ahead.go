package archive

import (
	"io"
	"sync"
)

const (
	aheadLen  = 256 << 10 // bytes in a piece
	aheadMany = 8         // pieces
)

// ahead is a stream that is read by a goroutine of its own.
type ahead struct {
	src   io.ReadCloser
	full  chan piece
	empty chan []byte
	stop  chan struct{}
	once  sync.Once
	now   piece
	rest  []byte // of now, not read yet
}

// piece is what one read of the source gave.
type piece struct {
	buf []byte
	n   int
	err error
}

// ReadAhead has src read by a goroutine of its own, up to 2 MiB ahead: fetching, decrypting and decompressing go on while what came before is looked at. Close ends
// that, and closes src.
func ReadAhead(src io.ReadCloser) io.ReadCloser {
	a := &ahead{src: src, full: make(chan piece, aheadMany), empty: make(chan []byte, aheadMany), stop: make(chan struct{})}
	for range aheadMany {
		a.empty <- make([]byte, aheadLen)
	}
	go a.fill()
	return a
}

func (a *ahead) fill() {
	defer close(a.full)
	for {
		select {
		case <-a.stop:
			return
		case buf := <-a.empty:
			n, err := a.src.Read(buf)
			a.full <- piece{buf, n, err} // there is room: as much as there are buffers
			if err != nil {
				return
			}
		}
	}
}

func (a *ahead) Read(p []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.now.err != nil {
			return 0, a.now.err
		}
		if a.now.buf != nil {
			a.empty <- a.now.buf
		}
		next, ok := <-a.full
		if !ok {
			return 0, io.ErrClosedPipe
		}
		a.now, a.rest = next, next.buf[:next.n]
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// Close waits until nothing reads src any more.
func (a *ahead) Close() error {
	a.once.Do(func() { close(a.stop) })
	for range a.full { // what is on its way
	}
	return a.src.Close()
}
