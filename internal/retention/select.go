package retention

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path"
	"strings"

	"holdfast/internal/archive"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
)

// Suffixes of what lies beside a WAL file under its name.
const (
	deltaSuffix = "_delta"
	noteSuffix  = ".sum.json"
	deltaGroup  = 16 // segments that a _delta object is about, the first of which it is named after
)

// selection is what of an archive goes.
type selection struct {
	backups   []string // with their sentinels
	folders   []string // what is left of other backups, and of pushes
	wal       func(t wal.Timeline, s span, about object) bool
	pieces    func(t wal.Timeline, n wal.SegmentNo, about object) bool
	histories map[wal.Timeline]bool
	size      wal.SegmentSize
}

// selects returns what goes by the plan, whether or not its time has come.
func (p *Plan) selects() selection {
	s := selection{size: p.judge.in.WAL.SegmentSize, histories: map[wal.Timeline]bool{}}
	for _, v := range p.Backups {
		if !v.Keep {
			s.backups = append(s.backups, v.Backup)
		}
	}
	for _, l := range p.Leftovers {
		if !l.Keep {
			s.folders = append(s.folders, l.Name)
		}
	}
	for _, h := range p.Histories {
		s.histories[wal.Timeline(h.Timeline)] = !h.Keep
	}
	if sc := p.rule.scope(); sc.wal {
		v := p.judge.judgeWAL((*backup).stay, sc.alone)
		s.wal = func(t wal.Timeline, at span, about object) bool { return v.lets(t, at, about, anything) }
		s.pieces = func(t wal.Timeline, n wal.SegmentNo, about object) bool {
			goes, _ := p.judge.pieces(v, t, n, about, anything)
			return goes
		}
	}
	return s
}

// Objects yields what would be removed by the plan at once, in the order in which it would be: sentinels, what else backups have, WAL.
func Objects(ctx context.Context, a *archive.Archive, p *Plan) iter.Seq2[store.Object, error] {
	if p.rule.scope().nothing {
		return whole(ctx, a)
	}
	s := p.selects()
	return func(yield func(store.Object, error) bool) {
		for _, name := range s.backups {
			o, err := a.Store().Stat(ctx, a.SentinelName(name))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if !yield(o, err) || err != nil {
				return
			}
		}
		for _, name := range append(s.backups, s.folders...) {
			objects, err := a.FolderOf(ctx, name)
			if err != nil {
				yield(store.Object{}, err)
				return
			}
			for _, o := range objects {
				if !yield(o, nil) {
					return
				}
			}
		}
		for o, err := range s.objects(ctx, a) {
			if !yield(o, err) {
				return
			}
		}
	}
}

// whole yields every object of the archive. What else lies in the store is not of it: other clusters' archives may lie below the same prefix.
func whole(ctx context.Context, a *archive.Archive) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		for _, dir := range []string{archive.BackupDir, archive.CatchUpDir, archive.WALDir, archive.OwnDir} {
			for o, err := range store.Walk(ctx, a.Store(), dir) {
				if !yield(o, err) || err != nil {
					return
				}
			}
		}
	}
}

// objects yields the WAL that goes and what belongs to it: files, notes, delta objects, summaries, history files, pieces of segments.
func (s *selection) objects(ctx context.Context, a *archive.Archive) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		if s.wal == nil {
			return
		}
		for o, err := range a.Store().List(ctx, archive.WALDir, "") {
			if err != nil {
				yield(store.Object{}, fmt.Errorf("list WAL: %w", err))
				return
			}
			if !o.IsDir() && s.hasWAL(path.Base(o.Name), object{archived: o.Modified}) && !yield(o, nil) {
				return
			}
		}
		for dir, err := range a.Store().List(ctx, archive.SummaryDir, "") {
			if err != nil {
				yield(store.Object{}, fmt.Errorf("list summaries of WAL: %w", err))
				return
			}
			if !dir.IsDir() {
				continue
			}
			for o, err := range a.Store().List(ctx, dir.Name, "") {
				if err != nil {
					yield(store.Object{}, fmt.Errorf("list summaries of WAL: %w", err))
					return
				}
				if name := archive.WALName(o.Name); !o.IsDir() && wal.IsSegment(name) && s.hasWAL(name, object{o.Modified, true}) && !yield(o, nil) {
					return
				}
			}
		}
		for o, err := range store.Walk(ctx, a.Store(), archive.TailDir) {
			if err != nil {
				yield(store.Object{}, fmt.Errorf("list segments in pieces: %w", err))
				return
			}
			t, n, err := s.size.ParseSegment(path.Base(path.Dir(o.Name)))
			if err == nil && s.pieces(t, n, object{archived: o.Modified}) && !yield(o, nil) {
				return
			}
		}
	}
}

// hasWAL reports whether the object of that base name goes. What is not understood stays.
func (s *selection) hasWAL(base string, about object) bool {
	name, isNote := strings.CutSuffix(base, noteSuffix)
	if !isNote {
		name = archive.WALName(base)
	}
	group, isDelta := strings.CutSuffix(name, deltaSuffix)
	about.beside = about.beside || isNote || isDelta
	switch kind := wal.KindOf(name); {
	case isDelta && wal.IsSegment(group):
		t, first, err := s.size.ParseSegment(group)
		return err == nil && s.wal(t, span{placeAt(s.size, first), placeAt(s.size, first+deltaGroup-1)}, about)
	case kind == wal.History:
		t, err := wal.TimelineOf(name)
		return err == nil && s.histories[t]
	case kind == wal.Other:
		return false
	}
	t, p := placeOf(name[:24])
	return s.wal(t, span{p, p}, about)
}
