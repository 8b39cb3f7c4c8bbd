package walrec_test

import (
	"bytes"
	"fmt"
	"path"
	"regexp"
	"strings"
	"testing"
	"time"

	"holdfast/internal/pg/blockset"
	"holdfast/internal/pg/walrec"
)

// told is what a record tells beside blocks, in the words that waldumpTold makes of pg_waldump's.
func told(r *walrec.Record) string {
	var b strings.Builder
	if x, ok, err := r.XactEnd(); err != nil {
		return err.Error()
	} else if ok {
		fmt.Fprintf(&b, "end %v %s", x.Committed, x.Time.Format("2006-01-02 15:04:05.000000"))
		for rel := range x.Dropped() {
			fmt.Fprintf(&b, " file %d", rel.Number)
		}
		for xid := range x.Subxacts() {
			fmt.Fprintf(&b, " sub %d", xid)
		}
		for db, oid := range x.DroppedStats() {
			fmt.Fprintf(&b, " stats %d/%d", db, oid)
		}
		for _, oid := range x.Invalidated() {
			fmt.Fprintf(&b, " relcache %d", oid)
		}
		return b.String()
	}
	if c, ok, err := r.Checkpoint(); err != nil {
		return err.Error()
	} else if ok && !c.EndOfRecovery {
		if c.Time.Before(time.Now().Add(-24*time.Hour)) || c.Time.After(time.Now()) {
			return "a checkpoint of " + c.Time.String()
		}
		return fmt.Sprintf("checkpoint %v redo %s timeline %d %d", c.Shutdown, c.Redo, uint32(c.Timeline), uint32(c.PrevTimeline))
	} else if ok {
		return fmt.Sprintf("end of recovery, timeline %d %d", uint32(c.Timeline), uint32(c.PrevTimeline))
	}
	if name, at, ok := r.RestorePoint(); ok && time.Since(at) < time.Hour && time.Since(at) > 0 {
		return "point " + name
	}
	if rel, fork, ok := r.CreatedFile(); ok {
		name := fmt.Sprint(rel.Number)
		if fork != blockset.Main {
			name += "_" + fork.String()
		}
		return "creates " + name
	}
	if c, ok := r.DatabaseChange(); ok && c.Dropped {
		return fmt.Sprintf("drops database %d", c.Database)
	} else if ok {
		return fmt.Sprintf("makes database %d", c.Database)
	}
	if oid, ok := r.DroppedTablespace(); ok {
		return fmt.Sprintf("drops tablespace %d", oid)
	}
	if locks := r.Locks(); locks != nil {
		b.WriteString("locks")
		for _, l := range locks {
			fmt.Fprintf(&b, " %d %d %d", l.XID, l.Database, l.Relation)
		}
		return b.String()
	}
	if x, ok := r.Running(); ok {
		return fmt.Sprintf("running %d %d", x.Oldest, x.Next)
	}
	if db, file, ok := r.RelMap(); ok {
		return fmt.Sprintf("map of %d, %d bytes", db, len(file))
	}
	if db, oids := r.Truncated(); oids != nil {
		return fmt.Sprintf("truncates %d %v", db, oids)
	}
	if c, ok := r.RowChange(); ok {
		switch {
		case c.Op == walrec.Insert && c.New == walrec.Place{}:
			return fmt.Sprintf("inserts %d", c.Rows)
		case c.Op == walrec.Insert:
			return fmt.Sprintf("inserts at %d", c.New.Offset)
		case c.Op == walrec.Delete, c.New == walrec.Place{}: // or moved to another partition
			return fmt.Sprintf("deletes at %d", c.Old.Offset)
		}
		return fmt.Sprintf("updates at %d, now %d", c.Old.Offset, c.New.Offset)
	}
	return ""
}

var (
	dumpOffset   = regexp.MustCompile(`\b(?:old_)?off:? (\d+)`)
	dumpNew      = regexp.MustCompile(`\bnew[ _]off:? (\d+)`)
	dumpTuples   = regexp.MustCompile(`(?:ntuples: )?(\d+)(?: tuples)?`)
	dumpTime     = regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}`)
	dumpRedo     = regexp.MustCompile(`^redo ([0-9A-F/]+); tli (\d+); prev tli (\d+);`)
	dumpRelcache = regexp.MustCompile(` relcache (\d+)`)
	dumpStats    = regexp.MustCompile(`^dropped stats:(.*)`)
	dumpDatabase = regexp.MustCompile(`(\d+)/(\d+)`)
	dumpLock     = regexp.MustCompile(`xid (\d+) db (\d+) rel (\d+)`)
	dumpRunning  = regexp.MustCompile(`nextXid (\d+) .*oldestRunningXid (\d+)`)
	dumpMap      = regexp.MustCompile(`database (\d+) tablespace \d+ size (\d+)`)
	dumpTruncate = regexp.MustCompile(`nrelids:? (\d+),? relids:? ?\[?([\d, ]+?)\]?$`)
)

// waldumpTold is what a line of pg_waldump tells.
func waldumpTold(line string) string {
	manager, _, _ := strings.Cut(strings.TrimPrefix(line, "rmgr: "), " ")
	_, desc, ok := strings.Cut(line, ", desc: ")
	if !ok {
		return line
	}
	desc, _, _ = strings.Cut(desc, ", blkref #")
	op, desc, _ := strings.Cut(desc, " ")
	op = strings.TrimSuffix(op, "+INIT")
	of := func(re *regexp.Regexp) []string {
		found := re.FindStringSubmatch(desc)
		if found == nil {
			return []string{desc, "?", "?", "?"}
		}
		return found
	}
	switch manager + " " + op {
	case "Transaction COMMIT", "Transaction COMMIT_PREPARED", "Transaction ABORT", "Transaction ABORT_PREPARED":
		var b strings.Builder
		fmt.Fprintf(&b, "end %v %s", strings.HasPrefix(op, "COMMIT"), dumpTime.FindString(desc))
		var files, subs, stats, relcache strings.Builder // tens of thousands of subtransactions
		for part := range strings.SplitSeq(desc, "; ") {
			switch {
			case strings.HasPrefix(part, "rels: "):
				for rel := range strings.FieldsSeq(part[6:]) {
					files.WriteString(" file " + path.Base(rel))
				}
			case strings.HasPrefix(part, "subxacts: "):
				for xid := range strings.FieldsSeq(part[10:]) {
					subs.WriteString(" sub " + xid)
				}
			case dumpStats.MatchString(part):
				for item := range strings.FieldsSeq(dumpStats.FindStringSubmatch(part)[1]) {
					if rel, ok := strings.CutPrefix(item, "2/"); ok {
						stats.WriteString(" stats " + rel)
					}
				}
			case strings.HasPrefix(part, "inval msgs:"):
				for _, found := range dumpRelcache.FindAllStringSubmatch(part, -1) {
					relcache.WriteString(" relcache " + found[1])
				}
			}
		}
		return b.String() + files.String() + subs.String() + stats.String() + relcache.String()
	case "XLOG CHECKPOINT_ONLINE", "XLOG CHECKPOINT_SHUTDOWN":
		f := of(dumpRedo)
		return fmt.Sprintf("checkpoint %v redo %s timeline %s %s", op == "CHECKPOINT_SHUTDOWN", f[1], f[2], f[3])
	case "XLOG RESTORE_POINT":
		return "point " + desc
	case "Storage CREATE":
		return "creates " + path.Base(desc)
	case "Database DROP":
		return "drops database " + of(dumpDatabase)[2]
	case "Database CREATE", "Database CREATE_FILE_COPY":
		all := dumpDatabase.FindAllStringSubmatch(desc, -1)
		return "makes database " + all[len(all)-1][2]
	case "Database CREATE_WAL_LOG":
		return "makes database " + of(dumpDatabase)[2]
	case "Tablespace DROP":
		return "drops tablespace " + strings.TrimSpace(desc)
	case "Standby LOCK":
		s := "locks"
		for _, f := range dumpLock.FindAllStringSubmatch(desc, -1) {
			s += " " + f[1] + " " + f[2] + " " + f[3]
		}
		return s
	case "Standby RUNNING_XACTS":
		f := of(dumpRunning)
		return "running " + f[2] + " " + f[1]
	case "RelMap UPDATE":
		f := of(dumpMap)
		return "map of " + f[1] + ", " + f[2] + " bytes"
	case "Heap TRUNCATE":
		f := of(dumpTruncate)
		return "truncates ? [" + strings.Join(strings.FieldsFunc(f[2], func(r rune) bool { return r == ' ' || r == ',' }), " ") + "]"
	case "Heap2 MULTI_INSERT":
		return "inserts " + of(dumpTuples)[1]
	case "Heap INSERT":
		return "inserts at " + of(dumpOffset)[1]
	case "Heap DELETE":
		return "deletes at " + of(dumpOffset)[1]
	case "Heap UPDATE", "Heap HOT_UPDATE":
		return "updates at " + of(dumpOffset)[1] + ", now " + of(dumpNew)[1]
	}
	return ""
}

// sameTold compares what a record tells with what pg_waldump prints of it.
func sameTold(t *testing.T, r *walrec.Record, dumped string, kinds map[string]int) {
	t.Helper()
	got, want := told(r), waldumpTold(dumped)
	if strings.HasPrefix(want, "truncates") { // pg_waldump does not name the database
		got = regexp.MustCompile(`^truncates \d+`).ReplaceAllString(got, "truncates ?")
	}
	if got != want && !strings.HasPrefix(got, "end of recovery") {
		t.Fatalf("%s\ngot  %s\nwant %s", dumped, got, want)
	}
	kind, _, _ := strings.Cut(got, " ")
	kinds[kind]++
}

// Images of pages are restored from whatever they were compressed with.
func FuzzPGLZ(f *testing.F) {
	f.Add([]byte("\x10abcd\x04\x03efg"), 40)
	f.Add([]byte("\x02a\x0f\x01\xff"), 8192)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		dst := make([]byte, min(max(n, 0), 8192))
		got, err := walrec.PGLZ(dst, b)
		if got > len(dst) || err == nil && len(b) > 0 && got == 0 && len(dst) > 0 {
			t.Errorf("%d bytes of %d, %v", got, len(dst), err)
		}
		if !bytes.Equal(dst[got:], make([]byte, len(dst)-got)) {
			t.Error("bytes behind the end")
		}
	})
}
