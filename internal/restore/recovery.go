package restore

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
)

// Recovery says how PostgreSQL shall go on from the restored backup.
type Recovery struct {
	Command   string // restore_command: see Command
	Action    string // once the target is reached: pause, promote or shutdown; "" leaves that to PostgreSQL
	Exclusive bool   // stop before the target rather than behind it
	Standby   bool   // follow the archive as a standby instead of recovering to a target
	Archive   bool   // leave archive_mode and the commands of recovery alone: the copy archives, once promoted, like the original
}

// Command returns a restore_command that runs this program: its absolute path, that of its configuration file or "", and what stands before wal-fetch.
// All may hold any character.
func Command(binary, config string, before ...string) string {
	words := []string{ShellWord(binary)}
	if config != "" {
		words = append(words, "--config", ShellWord(config))
	}
	for _, w := range before {
		words = append(words, ShellWord(w))
	}
	return strings.Join(words, " ") + ` wal-fetch "%f" "%p"`
}

// ShellWord quotes s, where it needs that, for a command that PostgreSQL has a POSIX shell run, and in which it expands %.
func ShellWord(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+=:@") == "" {
		return s
	}
	return "'" + strings.NewReplacer("'", `'\''`, "%", "%%").Replace(s) + "'"
}

// setting is one line of a configuration file. Single quotes and backslashes are doubled.
func setting(name, value string) string {
	return fmt.Sprintf("%s = '%s'", name, strings.NewReplacer("'", "''", `\`, `\\`).Replace(value))
}

// managed lists the settings that planRecovery decides on. Of an earlier life of the cluster none may be left:
// PostgreSQL refuses two targets at once.
var managed = []string{
	"restore_command", "recovery_target", "recovery_target_name", "recovery_target_time", "recovery_target_xid", "recovery_target_lsn",
	"recovery_target_inclusive", "recovery_target_timeline", "recovery_target_action", "standby_mode",
}

// targets are the settings of which PostgreSQL takes one.
var targets = map[catalog.Kind]string{
	catalog.Immediate: "recovery_target", catalog.AtTime: "recovery_target_time", catalog.AtLSN: "recovery_target_lsn",
	catalog.AtXID: "recovery_target_xid", catalog.AtName: "recovery_target_name",
}

// noTarget empties the targets of other kinds. It goes before the target: behind one PostgreSQL refuses even an empty one (assign_recovery_target).
func noTarget(but catalog.Kind) (lines []string) {
	for kind, name := range targets {
		if kind != but {
			lines = append(lines, setting(name, ""))
		}
	}
	slices.Sort(lines)
	return lines
}

// planRecovery says which settings and which signal file PostgreSQL gets.
func (p *Plan) planRecovery(r Request) error {
	rec := r.Recovery
	if rec == nil {
		p.note("PostgreSQL is not told to recover: to replay WAL set restore_command and create recovery.signal, or restore with --target latest, a target or --standby")
		return nil
	}
	t := r.Choice.Target
	switch {
	case p.PgVersion == 0:
		return &RefusedError{fmt.Sprintf("backup %s does not say of which PostgreSQL it is, so recovery cannot be set up", p.Backup),
			"restore without a target and configure recovery by hand"}
	case !slices.Contains([]string{"", "pause", "promote", "shutdown"}, rec.Action):
		return fmt.Errorf("target action %q: want pause, promote or shutdown", rec.Action)
	case rec.Standby && t.Kind != catalog.Latest:
		return errors.New("a standby follows the archive for ever: it takes no recovery target")
	case rec.Action != "" && t.Kind == catalog.Latest:
		return errors.New("a target action needs a target: at the end of the WAL PostgreSQL promotes, and a standby waits")
	case rec.Exclusive && !slices.Contains([]catalog.Kind{catalog.AtTime, catalog.AtXID, catalog.AtLSN}, t.Kind):
		return errors.New("exclusive needs a target that is a time, a transaction or an LSN: PostgreSQL stops at no other one early")
	case strings.ContainsAny(rec.Command+t.Name, "\n\r\x00"):
		return errors.New("a restore_command or a restore point cannot hold a line break")
	}
	lines := []string{setting("restore_command", rec.Command)}
	if p.PgVersion >= 120000 { // of postgresql.conf too, which a target of an earlier life may be in
		lines = append(lines, noTarget(t.Kind)...)
	}
	switch t.Kind {
	case catalog.Immediate:
		lines = append(lines, setting("recovery_target", "immediate"))
	case catalog.AtTime:
		lines = append(lines, setting("recovery_target_time", t.Time.UTC().Format("2006-01-02 15:04:05.999999-07")))
	case catalog.AtLSN:
		lines = append(lines, setting("recovery_target_lsn", t.LSN.String()))
	case catalog.AtXID:
		lines = append(lines, setting("recovery_target_xid", strconv.FormatUint(t.XID, 10)))
	case catalog.AtName:
		lines = append(lines, setting("recovery_target_name", t.Name))
	}
	timeline := strconv.FormatUint(uint64(t.Timeline), 10)
	if rec.Standby { // follows the primary to the timelines that are to come
		switch stray, higher := strayAbove(r.Choice); {
		case higher:
			p.note("the standby stays on timeline %d: PostgreSQL would follow the latest one, and that is timeline %d, which the cluster is not on. "+
				"Put that aside (`holdfast timeline forget %[2]d`), and set recovery_target_timeline = 'latest'", uint32(t.Timeline), uint32(stray))
		case r.Choice.Current != nil || t.Highest:
			timeline = "latest"
		}
	}
	lines = append(lines, setting("recovery_target_timeline", timeline))
	left := p.PgVersion >= 120000 && t.Kind != catalog.Latest // what postgresql.conf says may be of an earlier life
	if rec.Exclusive {
		lines = append(lines, setting("recovery_target_inclusive", "off"))
	} else if left {
		lines = append(lines, setting("recovery_target_inclusive", "on"))
	}
	if rec.Action != "" || left {
		lines = append(lines, setting("recovery_target_action", cmp.Or(rec.Action, "pause"))) // PostgreSQL's own default
	}
	p.settingsFile, p.Signal = "postgresql.auto.conf", "recovery.signal"
	if rec.Standby {
		p.Signal = "standby.signal"
	}
	if p.PgVersion < 120000 {
		if rec.Standby {
			lines = append(lines, setting("standby_mode", "on"))
		}
		p.settingsFile, p.Signal = "recovery.conf", ""
	}
	if !rec.Archive {
		lines = append(lines, archiveOff)
		p.note("the copy does not archive (archive_mode = off): it must not write into the archive it came from. --archive leaves that as it was")
	}
	if p.PgVersion >= 120000 { // before, these were in recovery.conf only, which is written anew
		if !rec.Archive { // commands of the original would clean up or announce what is not the copy's
			lines = append(lines, setting("archive_cleanup_command", ""), setting("recovery_end_command", ""))
		}
		if !rec.Standby { // that of a standby which lags on purpose would hold up the recovery
			lines = append(lines, setting("recovery_min_apply_delay", "0"))
		}
	}
	p.Settings, p.Target = lines, t.String()
	if rec.Standby {
		p.Target = "a standby that follows the archive"
	}
	if t.Kind == catalog.AtXID || t.Kind == catalog.AtName {
		p.note("the newest backup is restored: where the %s came before its end at %s, name an older backup", t, catalog.FormatTime(p.Finished))
	}
	return nil
}

// strayAbove returns the highest timeline that PostgreSQL might take for the latest, and that does not lead on from the choice's.
func strayAbove(c catalog.Choice) (stray wal.Timeline, higher bool) {
	if c.Current == nil {
		return 0, false
	}
	for _, l := range c.Current.Others {
		if l.Timeline > c.Target.Timeline {
			stray, higher = max(stray, l.Timeline), true
		}
	}
	return stray, higher
}

var archiveOff = setting("archive_mode", "off")

// maxAutoConf bounds postgresql.auto.conf in bytes.
const maxAutoConf = 16 << 20

// writeRecovery writes the settings and the signal file. Before PostgreSQL 12 recovery has a file of its own.
func (t *tree) writeRecovery(p *Plan) error {
	if len(p.Settings) == 0 {
		return nil
	}
	head := fmt.Sprintf("# Written by holdfast backup-fetch at %s: %s, to %s", time.Now().UTC().Format(time.RFC3339), p.Backup,
		strings.ReplaceAll(p.Target, "\n", " "))
	auto := p.Settings
	if p.settingsFile == "recovery.conf" {
		own := slices.DeleteFunc(slices.Clone(p.Settings), func(l string) bool { return l == archiveOff })
		content := head + "\n" + strings.Join(own, "\n") + "\n"
		if err := t.write("recovery.conf", []byte(content), 0o600); err != nil {
			return err
		}
		auto = p.Settings[len(own):]
	}
	if len(auto) > 0 {
		if err := t.appendAutoConf(head, auto); err != nil {
			return err
		}
	}
	if p.Signal != "" {
		return t.write(p.Signal, nil, 0o600)
	}
	return nil
}

// appendAutoConf puts lines at the end of postgresql.auto.conf, and comments out what it said of recovery before.
func (t *tree) appendAutoConf(head string, lines []string) error {
	const name = "postgresql.auto.conf"
	was, err := t.read(name, maxAutoConf)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var b bytes.Buffer
	for line := range strings.Lines(string(was)) {
		key := strings.ToLower(strings.TrimSpace(line))
		if i := strings.IndexAny(key, "= \t"); i >= 0 {
			key = key[:i]
		}
		if slices.Contains(managed, key) {
			b.WriteString("# before the restore: ")
		}
		b.WriteString(strings.TrimSuffix(line, "\n") + "\n")
	}
	fmt.Fprintf(&b, "%s\n%s\n", head, strings.Join(lines, "\n"))
	return t.write(name, b.Bytes(), 0o600)
}

// read reads a file of at most max bytes.
func (t *tree) read(p string, max int64) ([]byte, error) {
	root, _, rel := t.locate(p)
	info, err := root.Lstat(rel)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > max {
		return nil, &fs.PathError{Op: "read", Path: p, Err: fmt.Errorf("not a file of at most %d bytes", max)}
	}
	f, err := root.OpenFile(rel, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	return io.ReadAll(io.LimitReader(f, max))
}
