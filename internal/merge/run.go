package merge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/chain"
	"holdfast/internal/tarpart"
)

// Options tunes Run. The zero value merges; Host and Tool should say who does.
type Options struct {
	Workers  int           // parts made at once; 0 means one per core
	PartSize int64         // bytes of content after which a part is closed; 0 means 1 GiB less one byte, as WAL-G
	Beat     time.Duration // how often a sign of life is left in the archive; 0 means a minute, and it has to be below 15
	Host     string        // name of this host
	Tool     string        // release of this program
	Logger   *slog.Logger  // nil discards
	Progress *Progress     // kept up to date when not nil
}

// Progress is where a merge is. Run keeps it up to date; others read it at any time.
type Progress struct {
	phase       atomic.Pointer[string]
	done, total atomic.Int64
}

// Phase says what is being done, in a word.
func (p *Progress) Phase() string {
	if s := p.phase.Load(); s != nil {
		return *s
	}
	return ""
}

// Bytes returns how many bytes of content are in their place, and how many there will be.
func (p *Progress) Bytes() (done, total int64) { return p.done.Load(), p.total.Load() }

// Report says what Run did.
type Report struct {
	Backup           string   `json:"backup"`                  // what was merged
	Name             string   `json:"backup_name"`             // of the full backup
	Nothing          string   `json:"nothing_to_do,omitempty"` // why nothing was done; what follows is empty then
	Chain            []string `json:"chain"`                   // what it was put together from, newest first
	Files            int64    `json:"files"`
	UncompressedSize int64    `json:"uncompressed_size"` // bytes
	CompressedSize   int64    `json:"compressed_size"`   // bytes as stored
	CopiedParts      int64    `json:"copied_parts"`      // as they were stored
	CopiedBytes      int64    `json:"copied_bytes"`      // as stored
	MadeParts        int64    `json:"made_parts"`
	ReadBytes        int64    `json:"read_bytes"` // of the parts of all backups, decompressed
	CorruptBlocks    int64    `json:"corrupt_blocks,omitempty"`
	Unneeded         []string `json:"no_longer_built_on,omitempty"` // of Chain, now that Name is there
	Seconds          float64  `json:"seconds"`
}

// Run carries out a plan. On an error nothing of the full backup is left in the archive; should removing what was stored fail too, the error says so. Of a
// process that is killed the next push, or the next Run under that name, removes what it left.
func Run(ctx context.Context, a *archive.Archive, p *Plan, opts Options) (_ *Report, err error) {
	r := &run{Options: opts, archive: a, plan: p}
	r.report = Report{Backup: p.Backup, Name: p.Merged, Chain: p.Chain, Unneeded: p.Unneeded, Nothing: p.Nothing}
	if p.Nothing != "" {
		return &r.report, nil
	}
	r.defaults()
	begun := time.Now()
	r.sweep(ctx)
	if r.draft, err = a.Begin(ctx, p.Merged, r.Host); err != nil {
		return nil, err
	}
	beating, end := r.draft.Beating(ctx, r.Beat, func(err error) { r.Logger.Warn("could not leave a sign of life in the archive", "err", err) })
	err = r.do(beating)
	if cause := context.Cause(beating); err != nil && cause != nil {
		err = cause // why it was cut short, not how it noticed
	}
	end()
	if err != nil {
		return nil, r.undo(ctx, fmt.Errorf("merge %s: %w", p.Backup, err))
	}
	r.report.UncompressedSize, r.report.CompressedSize = r.draft.Sizes()
	r.report.Files = r.draft.Files()
	r.report.ReadBytes = r.read.Load()
	r.report.Seconds = time.Since(begun).Seconds()
	return &r.report, nil
}

// run is one merge at work.
type run struct {
	Options
	archive *archive.Archive
	plan    *Plan
	draft   *archive.Draft
	facts   []fact // of each file
	spool   spool
	sources sources
	uid     int // to whom the files belonged
	gid     int
	read    atomic.Int64 // bytes, decompressed

	mu     sync.Mutex // guards report while workers run
	report Report
}

// fact is what a full backup says of a file beside what a chain knows, and where in the spool its pieces are.
type fact struct {
	inode   uint64
	changed int64 // nanoseconds since 1970; 0 where it is not known
	last    int64 // the piece that was found last; 0 for none
}

func (r *run) defaults() {
	r.Workers = cmp.Or(max(0, r.Workers), runtime.GOMAXPROCS(0))
	r.PartSize = cmp.Or(max(0, r.PartSize), 1<<30-1)
	r.Beat = cmp.Or(max(0, r.Beat), time.Minute)
	r.Logger = cmp.Or(r.Logger, slog.New(slog.DiscardHandler))
	r.Progress = cmp.Or(r.Progress, &Progress{})
	r.sources.archive = r.archive
}

// cleanupTime bounds what is done after a failure.
const cleanupTime = 2 * time.Minute

// undo leaves the archive as it was before the merge that failed with err, which it returns with what became of that.
func (r *run) undo(ctx context.Context, err error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	var lost *archive.InUseError
	abort := r.draft.Abort(ctx)
	if abort != nil && !(errors.As(err, &lost) && errors.As(abort, &lost)) { // said already
		err = errors.Join(err, fmt.Errorf("remove what was stored of %s: %w", r.draft.Name(), abort))
	}
	return err
}

func (r *run) phase(s string) { r.Progress.phase.Store(&s) }

func (r *run) do(ctx context.Context) error {
	r.phase("preparing")
	r.Progress.total.Store(r.plan.Bytes)
	defer r.spool.close()
	for _, b := range r.plan.chain.Backups { // the draft is there: from now on retention sees it
		if err := catalog.StillThere(ctx, r.archive, b); err != nil {
			return fmt.Errorf("%s: %w", b.Name, err)
		}
	}
	if err := r.gather(ctx); err != nil {
		return err
	}
	r.phase("copying")
	tasks := make(chan any)
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(tasks)
		return r.deal(groupCtx, tasks)
	})
	for range r.Workers {
		group.Go(func() error {
			w := &worker{run: r, ctx: groupCtx, tasks: tasks}
			defer w.close()
			return w.work()
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := r.draft.CopyConfig(ctx, r.plan.Backup); err != nil {
		return err
	}
	r.phase("committing")
	return r.draft.Commit(ctx, r.sentinel())
}

// sweep removes what pushes left that died more than a day ago. That fails nothing.
func (r *run) sweep(ctx context.Context) {
	dead, err := r.archive.SweepDead(ctx, r.Host)
	for _, d := range dead {
		r.Logger.Info("removed what a push that died had left of " + d)
	}
	if err != nil && ctx.Err() == nil {
		r.Logger.Warn("what pushes that died have left is not all removed", "err", err)
	}
}

// gather reads what the manifest of the newest backup says of its files, and to whom they belonged.
func (r *run) gather(ctx context.Context) error {
	r.facts = make([]fact, r.plan.chain.Len())
	err := r.plan.chain.Members(ctx, func(m *tarpart.Member) error {
		f := &r.facts[r.plan.chain.Find(m.Path)]
		f.inode = m.Inode
		if !m.Changed.IsZero() {
			f.changed = m.Changed.UnixNano()
		}
		return nil
	})
	if err != nil {
		return err
	}
	return r.findOwner(ctx)
}

// findOwner reads the first header of a part. A manifest does not say to whom files belong, nor does a restore ask; who unpacks parts by hand is glad
// of it.
func (r *run) findOwner(ctx context.Context) error {
	for _, b := range r.plan.chain.Backups {
		parts, err := r.archive.Parts(ctx, b.Name)
		if err != nil {
			return err
		}
		for _, p := range parts {
			if p.IsControl() || p.IsLabel() {
				continue
			}
			body, err := r.archive.OpenPart(ctx, b.Name, p)
			if err != nil {
				return err
			}
			h, err := tarpart.First(body)
			if err = errors.Join(err, body.Close()); err != nil {
				return fmt.Errorf("%s of %s: %w", p.Name, b.Name, err)
			}
			r.uid, r.gid = h.UID, h.GID
			return nil
		}
	}
	return nil
}

// deal goes through the chain and hands out tasks.
func (r *run) deal(ctx context.Context, tasks chan<- any) error {
	d := newDealer(r.plan.chain)
	err := r.plan.chain.Walk(ctx, func(p *chain.Part) error {
		h, err := d.deal(p)
		if err != nil {
			return err
		}
		return r.handOut(ctx, h, tasks)
	})
	if err == nil {
		err = d.finish()
	}
	if rest := d.rest(); err == nil && len(rest) > 0 {
		err = send(ctx, tasks, &batch{plain: rest})
	}
	return err
}

func send(ctx context.Context, tasks chan<- any, t any) error {
	select {
	case tasks <- t:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// handOut makes the tasks of one part, after it has noted what of it belongs to files that older backups complete.
func (r *run) handOut(ctx context.Context, h *hand, tasks chan<- any) error {
	if h.copied {
		return send(ctx, tasks, h)
	}
	var sums *chain.Sums
	var err error
	mixed := len(h.pieces) > 0
	for _, t := range h.homes {
		mixed = mixed || t.Blocks != nil
	}
	if mixed {
		if sums, err = r.plan.chain.Sums(ctx, h.part); err != nil {
			return err
		}
		if sums.Err != nil {
			r.Logger.Warn(fmt.Sprintf("%v: contents are checked as a whole", sums.Err))
		}
	}
	if err := r.notePieces(ctx, h, sums); err != nil {
		return err
	}
	var content int64
	for _, t := range h.homes {
		content += t.Size
	}
	var ranges *archive.Ranges
	if content > 0 && (content < h.part.Content || content > unitSize) {
		if ranges, err = r.archive.Ranges(ctx, h.part.Backup, h.part.Part); err != nil {
			return err
		}
	}
	for _, b := range cut(h, ranges, sums) {
		if err := send(ctx, tasks, b); err != nil {
			return err
		}
	}
	return nil
}

// unitSize is about how many bytes of content a worker takes at once, where a part can be read in pieces: so few that no worker is left alone for
// long at the end, so many that asking for them costs nothing.
const unitSize = 64 << 20

// cut divides what a part completes into batches.
func cut(h *hand, ranges *archive.Ranges, sums *chain.Sums) (batches []*batch) {
	if len(h.homes) == 0 {
		return nil
	}
	if ranges == nil {
		return []*batch{{part: h.part, sums: sums, takes: h.homes}}
	}
	b := &batch{part: h.part, ranges: ranges, sums: sums}
	var size, end int64
	for _, t := range h.homes {
		if len(b.takes) > 0 && t.Size > 0 && (size >= unitSize || t.Offset-end > maxGap || size+t.Size > unitSize+unitSize/2) {
			batches = append(batches, b)
			b = &batch{part: h.part, ranges: ranges, sums: sums}
			size = 0
		}
		b.takes = append(b.takes, t)
		if size += t.Size; t.Size > 0 {
			end = t.Offset + t.Size
		}
	}
	return append(batches, b)
}

// copyPart copies a part as it is stored.
func (r *run) copyPart(ctx context.Context, h *hand) error {
	base := h.part.Base
	if !h.part.IsControl() && !h.part.IsLabel() {
		base = r.draft.NextPart()
	}
	members := make([]tarpart.Member, len(h.part.Members))
	var bytes int64
	for i := range h.part.Members {
		members[i] = h.part.Members[i]
		r.describe(r.plan.chain.Find(members[i].Path), &members[i])
		bytes += members[i].Size
	}
	if err := r.draft.CopyPart(ctx, base, h.part.Backup, h.part.Part, members); err != nil {
		return fmt.Errorf("copy %s of %s: %w", h.part.Name, h.part.Backup, err)
	}
	r.Progress.done.Add(bytes)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.CopiedParts++
	r.report.CopiedBytes += h.part.Size
	r.countCorrupt(members)
	return nil
}

// describe makes a member say what the newest backup says of its file.
func (r *run) describe(file int, m *tarpart.Member) {
	now, f := r.plan.chain.File(file), &r.facts[file]
	m.ModTime, m.Inode, m.Changed = now.ModTime.UTC(), f.inode, time.Time{}
	if f.changed != 0 {
		m.Changed = time.Unix(0, f.changed).UTC()
	}
}

// countCorrupt adds up pages that were corrupt when they were backed up. r.mu is held.
func (r *run) countCorrupt(members []tarpart.Member) {
	for i := range members {
		r.report.CorruptBlocks += int64(members[i].CorruptCount)
	}
}

// sentinel describes the full backup: as the newest of the chain does, and that it builds on nothing.
func (r *run) sentinel() *archive.Sentinel {
	b := r.plan.newest
	s := *b.Sentinel
	s.Merged = &archive.Merged{Backup: b.Name, Sum: s.Sum, Chain: r.plan.Chain}
	s.DeltaLSN, s.DeltaFrom, s.DeltaFullName, s.DeltaCount = nil, "", "", 0
	s.Parent, s.DeltaSource, s.Manifest, s.Sum = "", "", "", ""
	s.CorruptBlocks, s.Tool = r.report.CorruptBlocks, r.Tool
	if b.Metadata != nil { // where the flag counts
		s.IsPermanent = b.Metadata.IsPermanent
	}
	return &s
}
