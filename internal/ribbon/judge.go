package ribbon

import (
	"fmt"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
)

// base is a backup as something to restore from.
type base struct {
	*catalog.Backup
	system        bool // of the cluster that is judged
	start, finish wal.LSN
	first, last   wal.SegmentNo // that make it consistent
	state         state         // of its own objects and those of what it builds on
	why, advice   string
	verified      time.Time // when the oldest of what it is put together from was read last; zero for never

	judging, judged bool
}

// worse lowers the state of b.
func (b *base) worse(s state, why, advice string) {
	if s > b.state {
		b.state, b.why, b.advice = s, why, advice
	}
}

// judge finds out what state b is in, and what it builds on, whatever its WAL.
func (c *computer) judge(b *base) {
	if b.judged {
		return
	}
	b.judged, b.judging = true, true
	defer func() { b.judging = false }()
	size := c.in.WAL.SegmentSize
	_, n, err := size.ParseSegment(b.Segment())
	b.start, b.finish, b.first, b.last = size.Start(n), size.Start(n)+1, n, n
	if err != nil {
		b.worse(doubtful, fmt.Sprintf("has a name that does not fit WAL segments of %d MiB, which is what the newest backup has", size>>20), "")
	}
	if b.Sentinel == nil {
		b.worse(doubtful, fmt.Sprintf("has documents that cannot be read: %v", b.Err), adviceDocument)
		return
	}
	c.place(b)
	found := c.in.Backups[b.Name]
	switch {
	case found.Damaged != "":
		b.worse(bad, "is damaged: "+found.Damaged, adviceTake)
	case found.Missing != "":
		b.worse(bad, "lacks "+found.Missing, adviceTake)
	}
	if found.Locked != "" {
		b.worse(doubtful, "cannot be read here: "+found.Locked, adviceLocked)
	}
	if !found.Failed.IsZero() {
		b.worse(doubtful, "did not come up when it was restored to be proven, "+stamp(found.Failed), adviceVerify)
	}
	b.verified = found.Verified
	if b.IsDelta() {
		c.judgeParent(b)
	}
	if c.in.ProvenOnly && b.verified.IsZero() {
		b.worse(doubtful, "was not verified", adviceVerify)
	}
}

// place finds out where the backup starts and finishes.
func (c *computer) place(b *base) {
	size := c.in.WAL.SegmentSize
	switch its, err := b.SegmentSize(); {
	case err != nil:
		b.worse(doubtful, err.Error(), "")
	case its != size:
		b.worse(doubtful, fmt.Sprintf("has WAL segments of %d MiB, the newest backup of %d", its>>20, size>>20), "")
	}
	if lsn, ok := b.StartLSN(); ok {
		b.start = lsn
	}
	b.finish = b.start + 1
	if lsn, ok := b.FinishLSN(); ok {
		b.finish = lsn
	}
	if b.finish < b.start {
		b.worse(bad, fmt.Sprintf("says that it was finished at %s, before it started at %s", b.finish, b.start), adviceTake)
		b.finish = b.start
	}
	b.first = size.Segment(b.start)
	b.last = max(b.first, size.LastSegment(b.finish))
}

// judgeParent takes over what is wrong with the backup that b builds on.
func (c *computer) judgeParent(b *base) {
	parent, there := c.byName[b.Sentinel.DeltaFrom]
	switch {
	case b.Sentinel.DeltaFrom == "":
		b.worse(bad, "is named like a delta, and does not say what it builds on", adviceFull)
		return
	case !there:
		b.worse(bad, fmt.Sprintf("builds on %s, which the archive does not have", b.Sentinel.DeltaFrom), adviceFull)
		return
	case parent.judging:
		b.worse(bad, "builds on itself", adviceFull)
		return
	}
	c.judge(parent)
	if parent.Sentinel == nil {
		b.worse(doubtful, fmt.Sprintf("builds on %s, which has documents that cannot be read: %v", parent.Name, parent.Err), adviceDocument)
		return
	}
	if err := b.CheckParent(parent.Backup); err != nil {
		b.worse(bad, err.Error(), adviceFull)
		return
	}
	if parent.state != good && !(c.in.ProvenOnly && parent.why == "was not verified") {
		b.worse(parent.state, fmt.Sprintf("builds on %s, which %s", parent.Name, parent.why), parent.advice)
	}
	if parent.verified.Before(b.verified) {
		b.verified = parent.verified
	}
}

// usable reports whether recovery from b can go along p, as far as positions tell.
func (b *base) usable(p catalog.Path) bool {
	leg, on := p.Leg(b.Timeline())
	switch {
	case !on || b.Condemned != nil || b.start < leg.Begin:
		return false
	case leg.End == 0:
		return true
	case b.Sentinel == nil:
		return b.start < leg.End
	}
	_, says := b.FinishLSN()
	return says && b.finish <= leg.End
}
