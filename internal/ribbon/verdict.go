package ribbon

import (
	"fmt"
	"time"

	"holdfast/internal/pg/wal"
)

// conclude sums up what was found along the timeline of the cluster.
func (c *computer) conclude(r *Ribbon, x *axis) {
	r.Timeline = int64(x.path.Timeline())
	r.Main = x.short
	if x.end != 0 {
		end := x.behind(x.last)
		if x.bare {
			end = x.end
		}
		r.Newest = &Point{Timeline: x.timeline(end), LSN: end, Time: x.time(end).UTC()}
	}
	last, count := -1, 0
	for i, s := range r.Main {
		if s.Verdict == Restorable {
			last = i
			count++
		}
	}
	if last >= 0 {
		s := r.Main[last]
		r.From = &Point{Timeline: x.timeline(s.From), LSN: s.From, Time: s.FromTime.UTC()}
		r.Until = &Point{Timeline: x.timeline(s.To), LSN: s.To, Time: s.ToTime.UTC()}
		if read := c.in.tail(r.Until.Timeline, x.size.LastSegment(s.To)); read != nil {
			r.Until.Commit = read.Commit.UTC()
		}
		age := Seconds(max(0, c.in.Now.Sub(s.ToTime)))
		r.Age = &age
	}
	lost := c.review(r.Main, last)
	c.reviewBackups(r, x, lost)
	if c.in.Keyless {
		c.note("what is encrypted was not read: this host can encrypt and not decrypt. `holdfast ribbon` where backups are restored says whether it can be")
	}
	r.Verdict = c.sentence(r, last, count, lost)
	r.Status = c.status
}

// review finds out what the stretches mean for the status. It returns the last one if that keeps the newest state from being restored for certain, else nil.
func (c *computer) review(main []Stretch, last int) (lost *Stretch) {
	removed := 0
	for i := range main {
		s := &main[i]
		switch {
		case s.Verdict != Broken && s.Verdict != Unknown:
			if s.Removed {
				removed++
			} else if s.Verdict == Accepted {
				c.note("not restorable from %s to %s: %s", s.From, s.To, s.Why)
			}
		case i == len(main)-1:
			lost = s
		case s.Verdict == Broken && s.Backup == "": // of backups there is more to say
			c.warn("not restorable from %s to %s: %s", s.From, s.To, s.Why)
		case s.Verdict == Unknown && c.silent == "":
			c.warn("not known to be restorable from %s to %s: %s", s.From, s.To, s.Why)
		}
	}
	switch {
	case removed == 1:
		c.note("a stretch between older backups is not restorable, as is intended: retention removed its WAL")
	case removed > 1:
		c.note("%d stretches between older backups are not restorable, as is intended: retention removed their WAL", removed)
	}
	switch {
	case lost != nil && lost.Verdict == Broken, lost == nil && last < 0 && c.silent == "":
		c.status = Failure
	case lost != nil || last < 0:
		c.status = max(c.status, Warning)
	}
	return lost
}

// reviewBackups notes backups that cannot be restored; their moments may be restorable all the same. Those that do not lead to the cluster's timeline are
// no reason to worry.
func (c *computer) reviewBackups(r *Ribbon, x *axis, lost *Stretch) {
	const some = 5 // are named
	wrong := 0
	for i := len(r.Backups) - 1; i >= 0; i-- {
		b := &r.Backups[i]
		if b.Condemned || b.Verdict == Restorable || b.Verdict == Unknown && (c.in.ProvenOnly || c.silent != "") {
			continue
		}
		if wrong++; wrong > some || lost != nil && lost.Backup == b.Name { // the verdict itself tells
			continue
		}
		tell := c.note
		if _, on := x.path.Leg(b.Timeline); on {
			tell = c.warn
		}
		if b.Verdict == Broken {
			tell("%s cannot be restored: %s", b.Name, b.Why)
		} else {
			tell("%s is not known to be restorable: %s", b.Name, b.Why)
		}
	}
	if wrong > some {
		c.warn("so it is with %d older backups", wrong-some)
	}
}

// sentence says the verdict in one sentence.
func (c *computer) sentence(r *Ribbon, last, count int, lost *Stretch) string {
	if last < 0 {
		why := "the archive has no backups"
		if lost != nil {
			why = lost.Why
		} else if len(r.Backups) > 0 {
			why = "nothing is archived along timeline " + fmt.Sprint(r.Timeline)
		}
		if lost == nil && c.silent != "" {
			return "Not known to be restorable: " + c.silent
		}
		if lost != nil && lost.Verdict == Unknown {
			return "Not known to be restorable: " + why
		}
		return "NOT restorable: " + why
	}
	s := r.Main[last]
	window := fmt.Sprintf("from %s to %s (timeline %d)", stamp(s.FromTime), stamp(s.ToTime), s.Timeline)
	earlier := ""
	if count > 1 {
		earlier = fmt.Sprintf(", and %d earlier stretches", count-1)
		if count == 2 {
			earlier = ", and an earlier stretch"
		}
	}
	age := Ago(time.Duration(*r.Age))
	yes := "Restorable"
	if c.in.ProvenOnly {
		yes += " and verified"
	}
	switch {
	case lost != nil && lost.Verdict == Broken:
		return fmt.Sprintf("NOT restorable to the end: only %s%s, %s ago: %s", window, earlier, age, lost.Why)
	case lost != nil:
		return fmt.Sprintf("%s: any moment %s%s; what is newer is not known to be: %s", yes, window, earlier, lost.Why)
	case count > 1:
		return fmt.Sprintf("%s: any moment %s%s; newest WAL is %s old", yes, window, earlier, age)
	}
	text := fmt.Sprintf("%s: any moment %s; newest WAL is %s old", yes, window, age)
	if at := r.Until.Commit; !at.IsZero() {
		text += ", and has the commit of " + stamp(at)
	}
	return text
}

// Ago prints how long ago something was, in the largest unit that fits it twice.
func Ago(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(d.Round(time.Second).Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

// lsn is how JSON shows a position; null where there is none.
func lsn(l wal.LSN) any {
	if l == 0 {
		return nil
	}
	return l.String()
}
