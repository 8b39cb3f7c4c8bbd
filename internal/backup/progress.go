package backup

import (
	"sync/atomic"
)

// Progress is where a backup is. Run keeps it up to date; others read it at any time.
type Progress struct {
	phase atomic.Pointer[string]
	total atomic.Int64
	done  atomic.Int64
}

// Phase says what is being done, in a few words.
func (p *Progress) Phase() string {
	if s := p.phase.Load(); s != nil {
		return *s
	}
	return ""
}

// Bytes returns how many bytes of the data directory were read and how many there are to read; 0 when not yet known.
func (p *Progress) Bytes() (done, total int64) { return p.done.Load(), p.total.Load() }

func (r *run) phase(s string) { r.Progress.phase.Store(&s) }
