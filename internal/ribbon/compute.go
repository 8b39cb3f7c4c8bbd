package ribbon

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
	"holdfast/internal/proof"
)

// computer is Compute at work.
type computer struct {
	in      *Input
	system  uint64
	bases   []*base // in the order of the catalog
	byName  map[string]*base
	checked map[wal.Timeline]marks
	locked  map[wal.Timeline]marks
	gaps    map[wal.Timeline]marks
	spans   map[wal.Timeline][]span
	axes    map[wal.Timeline]*axis
	silent  string // which storages did not answer, and why; "" for none

	status Status
	urgent []string // notes that the status stands for
	notes  []string
}

// warn notes what is wrong, though the newest state may be restorable.
func (c *computer) warn(format string, args ...any) {
	c.status = max(c.status, Warning)
	c.urgent = append(c.urgent, fmt.Sprintf(format, args...))
}

func (c *computer) note(format string, args ...any) {
	c.notes = append(c.notes, fmt.Sprintf(format, args...))
}

// Compute judges an archive. It reads nothing but in, and gives the same for the same.
func Compute(in Input) Ribbon {
	if in.Catalog == nil {
		in.Catalog = &catalog.Catalog{}
	}
	if in.WAL == nil {
		in.WAL = &catalog.WAL{SegmentSize: 16 << 20}
	}
	c := &computer{in: &in, byName: map[string]*base{}, checked: map[wal.Timeline]marks{}, locked: map[wal.Timeline]marks{}, gaps: map[wal.Timeline]marks{},
		spans: map[wal.Timeline][]span{}, axes: map[wal.Timeline]*axis{}}
	r := Ribbon{Now: in.Now.UTC()}
	for _, s := range in.Stores {
		a := Asked{Name: s.Name}
		if s.Err != nil {
			a.Error = s.Err.Error()
			c.silent = join(c.silent, fmt.Sprintf("storage %s did not answer: %v", s.Name, s.Err))
		}
		r.Stores = append(r.Stores, a)
	}
	if c.silent != "" {
		c.warn("%s; what the other storages lack may lie there", c.silent)
	}
	for _, err := range in.Trouble {
		c.warn("the verdict may be wrong: %v", err)
	}
	if text := proof.Tell(in.RefusedProofs()); text != "" {
		c.note("%s", text)
	}
	if len(in.WAL.Foreign) > 0 {
		c.warn("segments whose names do not fit segments of %d MiB are not counted, such as %s", in.WAL.SegmentSize>>20, in.WAL.Foreign[0])
	}
	c.prepare()
	r.Others = c.enlist()
	for _, b := range c.bases {
		c.judge(b)
	}
	main := c.main()
	c.tails(main)
	r.Timelines = c.timelines()
	r.Backups = c.backups(main)
	c.conclude(&r, main)
	r.Notes = append(c.urgent, c.notes...)
	return r
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

// enlist takes the backups of the cluster that is judged, and counts those of others.
func (c *computer) enlist() (others []Other) {
	c.system = c.in.System
	for i := range slices.Backward(c.in.Catalog.Backups) {
		if s := c.in.Catalog.Backups[i].Sentinel; c.system == 0 && s != nil && s.SystemIdentifier != nil {
			c.system = *s.SystemIdentifier
		}
	}
	count := map[uint64]int{}
	for i := range c.in.Catalog.Backups {
		b := &base{Backup: &c.in.Catalog.Backups[i], system: true}
		if b.Sentinel != nil && b.Sentinel.SystemIdentifier != nil && c.system != 0 && *b.Sentinel.SystemIdentifier != c.system {
			b.system = false
			count[*b.Sentinel.SystemIdentifier]++
		}
		c.bases = append(c.bases, b)
		c.byName[b.Name] = b
	}
	for _, system := range slices.Sorted(maps.Keys(count)) {
		others = append(others, Other{system, count[system]})
		c.note("%d backups of another cluster are not judged: its system identifier is %d, that of this one %d", count[system], system, c.system)
	}
	return others
}

// main returns the axis that the verdict is about.
func (c *computer) main() *axis {
	e := c.in.Catalog.Evidence
	e.WAL = c.in.WAL
	e.Server = cmp.Or(c.in.Live, e.Server)
	current := c.in.Catalog.Current(e)
	t := current.Timeline
	if c.in.Live != 0 { // also where the archive knows nothing of it
		t = c.in.Live
	} else if current.Unknown {
		c.warn("the server is on timeline %d, of which nothing is archived: what it has written since it was promoted is lost with it. `pg_stat_archiver` on it says why", e.Server)
	}
	for _, l := range current.Others {
		if l.Left || l.Timeline == t || c.in.Live != 0 {
			continue
		}
		active := ""
		if !l.Newest.IsZero() {
			active = ", active until " + stamp(l.Newest)
		}
		text := fmt.Sprintf("timeline %d leads elsewhere%s; timeline %d is taken for the cluster's: %s. If that is wrong: --timeline %d. "+
			"If it is a clone's: `holdfast timeline forget %d`", l.Timeline, active, t, current.Why, l.Timeline, l.Timeline)
		if c.newest(t).Sub(l.Newest) <= time.Hour {
			c.warn("%s", text)
		} else {
			c.note("%s", text)
		}
	}
	return c.axisOf(t)
}

// tails tells what is amiss with segments in pieces along x.
func (c *computer) tails(x *axis) {
	size := x.size
	for s := range x.path.Stretches(size, 0) {
		of := c.in.WAL.Timeline(s.Timeline)
		if of == nil {
			continue
		}
		for i := range of.Tails {
			p := &of.Tails[i]
			if p.Whole || p.Segment < s.First || p.Segment > s.Last {
				continue
			}
			name, start := size.Name(s.Timeline, p.Segment), size.Start(p.Segment)
			if read := c.in.tail(s.Timeline, p.Segment); read != nil && read.Problem != "" {
				c.warn("the pieces of %s are damaged: %s", name, read.Problem)
			}
			switch {
			case p.Held < p.Top:
				c.warn("of the pieces of %s some are missing: they hold it up to %s, and what was received behind that, up to %s, cannot be restored", name,
					start+wal.LSN(p.Held), start+wal.LSN(p.Top))
			case !x.bare && p.Segment > x.last:
				c.note("the archive has pieces of %s, up to %s: they count once what comes before is archived", name, p.End(size))
			}
		}
	}
}

// newest returns when something along timeline t was stored last.
func (c *computer) newest(t wal.Timeline) (at time.Time) {
	x := c.axisOf(t)
	for i := len(x.items) - 1; i >= 0; i-- {
		if at := x.items[i].archived(x.items[i].last); !at.IsZero() {
			return at
		}
	}
	return at
}

// known returns the timelines that the archive has something of, ascending.
func (c *computer) known() []wal.Timeline {
	all := map[wal.Timeline]bool{}
	for t := range c.in.Catalog.Histories {
		all[t] = true
	}
	for t := range c.in.Catalog.BadHistory {
		all[t] = true
	}
	for _, t := range c.in.WAL.Timelines {
		all[t.Timeline] = true
	}
	for _, b := range c.bases {
		if b.system {
			all[b.Timeline()] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// timelines judges what each timeline contributed.
func (c *computer) timelines() (all []Timeline) {
	for _, t := range c.known() {
		x := c.axisOf(t)
		leg := x.path[len(x.path)-1]
		line := Timeline{Timeline: t, Switch: leg.Begin}
		if branches := c.in.Catalog.Histories[t]; len(branches) > 0 {
			last := branches[len(branches)-1]
			line.Parent, line.Reason = last.Timeline, last.Reason
		}
		for _, s := range x.short {
			if s.To < leg.Begin || s.To == leg.Begin && s.From < s.To {
				continue
			}
			if s.From < leg.Begin {
				s.From, s.FromTime = leg.Begin, x.time(leg.Begin)
			}
			line.Stretches = append(line.Stretches, s)
		}
		of := c.in.WAL.Timeline(t)
		if of != nil {
			for _, run := range of.Runs {
				line.Active = later(line.Active, run.Newest)
			}
			for _, p := range of.Tails {
				line.Active = later(line.Active, p.Modified)
			}
			if of.History != nil {
				line.Active = later(line.Active, of.History.Archived)
			}
		}
		for _, b := range c.bases {
			if b.system && b.Timeline() == t {
				line.Active = later(line.Active, b.Created())
			}
		}
		if of != nil {
			line.Notes = c.partials(t, of)
		}
		all = append(all, line)
	}
	return all
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b.UTC()
	}
	return a
}

// partials says why segments that were left unfinished do no harm, or what is in them alone.
func (c *computer) partials(t wal.Timeline, of *catalog.TimelineWAL) (notes []string) {
	size := c.in.WAL.SegmentSize
	for _, p := range of.Partial {
		name := size.Name(t, p.Segment)
		var next wal.Timeline
		var at wal.LSN
		for _, child := range slices.Sorted(maps.Keys(c.in.Catalog.Histories)) {
			branches := c.in.Catalog.Histories[child]
			if n := len(branches); n > 0 && branches[n-1].Timeline == t && size.Segment(branches[n-1].Switch) == p.Segment {
				next, at = child, branches[n-1].Switch
			}
		}
		switch {
		case c.in.WAL.Has(t, p.Segment):
			notes = append(notes, name+".partial does no harm: the whole segment is archived too")
		case next != 0 && c.in.WAL.Has(next, p.Segment):
			notes = append(notes, fmt.Sprintf("%s.partial does no harm: timeline %d was left for %d at %s, and %s begins with the same WAL", name, t, next, at, size.Name(next, p.Segment)))
		case next != 0:
			notes = append(notes, fmt.Sprintf("%s.partial alone has the last WAL of timeline %d, until %s is archived", name, t, size.Name(next, p.Segment)))
		default:
			notes = append(notes, fmt.Sprintf("%s.partial was left unfinished, and no timeline is known that goes on from it: PostgreSQL does not replay it", name))
		}
	}
	return notes
}

// backups judges each backup by itself.
func (c *computer) backups(main *axis) (all []Backup) {
	for _, b := range c.bases {
		if !b.system {
			continue
		}
		v := Backup{Name: b.Name, Timeline: b.Timeline(), Verified: b.verified, Proven: c.in.Backups[b.Name].Proven, Condemned: b.Condemned != nil, Storage: b.Storage}
		x := c.axisOf(b.Timeline())
		v.Verdict, v.Why = c.judgement(b, x)
		for _, along := range []*axis{main, x} {
			if i := holds(along.sure, b); i != nil {
				v.Until, v.ReplayBytes, v.UntilTime = along.to(i), uint64(along.to(i)-min(b.start, along.to(i))), along.time(along.to(i)).UTC()
				break
			}
		}
		if v.Condemned && v.Verdict == Restorable {
			v.Why = "retention removes it after " + stamp(b.Condemned.PurgeAfter)
		}
		all = append(all, v)
	}
	return all
}

// judgement says whether b restores to its own end.
func (c *computer) judgement(b *base, x *axis) (Verdict, string) {
	verdict, why := Broken, b.why
	switch items := c.along(x.path, b.first, b.last); {
	case b.state == bad:
	case x.err != nil:
		verdict, why = Unknown, x.err.Error()
	default:
		verdict = Restorable
		if b.state == doubtful {
			verdict = Unknown
		}
		for _, item := range items {
			if item.lacks(b.finish, x.size) {
				verdict, why = Broken, "lacks WAL of its own: "+names(x.size, item)
				break
			}
			if item.state == doubtful && verdict == Restorable {
				verdict, why = Unknown, "needs "+names(x.size, item)
			}
		}
	}
	if verdict == Broken && c.silent != "" {
		verdict, why = Unknown, c.silent+"; without it: "+why
	}
	return verdict, why
}

// qualified takes back what cannot be said for certain: what is missing may lie in a storage that did not answer, and without its history nothing is known
// of a timeline.
func (c *computer) qualified(x *axis, all []Stretch) []Stretch {
	for i := range all {
		switch s := &all[i]; {
		case s.Verdict == Restorable || s.Verdict == Unknown && s.Why != "":
		case x.err != nil:
			s.Verdict, s.Why, s.Advice = Unknown, x.err.Error(), adviceHistory(x.path.Timeline())
		case c.silent != "":
			s.Verdict, s.Advice = Unknown, adviceStorage
			if s.Why = c.silent + "; without it: " + s.Why; strings.HasSuffix(s.Why, ": ") {
				s.Why = c.silent
			}
		}
	}
	return all
}

// baseless says why nothing along the path can be restored, and what to do.
func (x *axis) baseless() (why, advice string) {
	t := x.path.Timeline()
	backups, condemned := 0, 0
	for _, b := range x.c.bases {
		if !b.system {
			continue
		}
		backups++
		if _, on := x.path.Leg(b.Timeline()); on && b.Condemned != nil {
			condemned++
		}
	}
	_, known := x.c.in.Catalog.Histories[t]
	switch {
	case condemned > 0:
		return fmt.Sprintf("all backups that lead to timeline %d are condemned by retention", t), "`holdfast undelete all`, or " + adviceTake
	case backups == 0:
		return "the archive has no backup of this cluster", adviceTake
	case t > 1 && !known:
		return fmt.Sprintf("timeline %d is not connected to any backup: it has none of its own, and %s, which says where it came from, is not archived",
			t, wal.HistoryName(t)), adviceHistory(t) + "; if a clone archived it: " + fmt.Sprintf("`holdfast timeline forget %d`", t)
	case len(x.path) == 1:
		return fmt.Sprintf("no backup is on timeline %d", t), adviceTake
	}
	return fmt.Sprintf("timeline %d is not connected to any backup: none is on it, nor on the timelines it came from before they were left", t),
		adviceTake + fmt.Sprintf(" on it; if a clone archived it: `holdfast timeline forget %d`", t)
}

// What to do about what is wrong.
const (
	adviceTake     = "`holdfast backup-push`"
	adviceFull     = "`holdfast backup-push --full`"
	adviceLocked   = "see to it that it can be read: `holdfast key check --read` tries the secret key (docs/security.md)"
	adviceVerify   = "`holdfast verify`"
	adviceDocument = "`holdfast backup-list` and `holdfast st cat` show what is there"
	adviceStorage  = "see to it that the storage answers (`holdfast st check read`), and look again"
	adviceDamaged  = "`holdfast wal-push --repair` on a host whose pg_wal still has it; else `holdfast backup-push`"
)

func adviceHistory(t wal.Timeline) string {
	return fmt.Sprintf("`holdfast wal-push pg_wal/%s` on a server that has it", wal.HistoryName(t))
}

// adviceMissing says what to do about segments that are missing. At the end of what is archived a backup makes them unneeded.
func adviceMissing(first, last string, end bool) string {
	which := first
	if last != first {
		which += " " + last
	}
	text := "`holdfast wal-push --repair` on a host whose pg_wal still has it"
	if end {
		return text + "; else at once " + adviceTake
	}
	return text + "; if it is lost: `holdfast wal-gap accept " + which + " --reason …`"
}

// stamp prints a moment for people, to the second.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 MST") }
