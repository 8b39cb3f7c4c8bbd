package failover

import (
	"io"
	"sync/atomic"
)

// source is what a put reads. It tells who is to blame when the put fails, and whether it can be made again.
type source struct {
	r      io.Reader
	seeker io.Seeker // nil: it cannot be read again
	start  int64
	used   atomic.Bool
	broken atomic.Bool // it was the source that failed
}

func newSource(r io.Reader) *source {
	s := &source{r: r}
	if seeker, ok := r.(io.Seeker); ok {
		if at, err := seeker.Seek(0, io.SeekCurrent); err == nil { // not of a pipe, say
			s.seeker, s.start = seeker, at
		}
	}
	return s
}

// again makes the source ready to be read from its start, and reports whether it is.
func (s *source) again() bool {
	if s.broken.Load() {
		return false
	}
	if !s.used.Load() {
		return true
	}
	if s.seeker == nil {
		return false
	}
	_, err := s.seeker.Seek(s.start, io.SeekStart)
	return err == nil
}

// reader returns the source with the abilities that it has.
func (s *source) reader() io.Reader {
	_, writes := s.r.(io.WriterTo)
	switch {
	case writes && s.seeker != nil:
		return struct {
			*source
			io.WriterTo
			io.Seeker
		}{s, writerTo{s}, s.seeker}
	case writes:
		return struct {
			*source
			io.WriterTo
		}{s, writerTo{s}}
	case s.seeker != nil:
		return struct {
			*source
			io.Seeker
		}{s, s.seeker}
	}
	return s
}

func (s *source) Read(p []byte) (int, error) {
	s.used.Store(true)
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.broken.Store(true)
	}
	return n, err
}

type writerTo struct{ s *source }

func (w writerTo) WriteTo(dst io.Writer) (int64, error) {
	w.s.used.Store(true)
	to := &sink{w: dst}
	n, err := w.s.r.(io.WriterTo).WriteTo(to)
	if err != nil && !to.broken {
		w.s.broken.Store(true)
	}
	return n, err
}

// sink knows whether it was the writing that failed.
type sink struct {
	w      io.Writer
	broken bool
}

func (s *sink) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.broken = s.broken || err != nil || n < len(p)
	return n, err
}
