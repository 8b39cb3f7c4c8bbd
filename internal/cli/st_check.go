package cli

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/spf13/cobra"

	"holdfast/internal/config"
	"holdfast/internal/store"
	"holdfast/internal/store/failover"
)

func (a *app) stCheck(f *stFlags) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Try what the storage can and cannot do",
		Long: "Puts two small objects of a random name below holdfast/check/, reads, copies and lists them, tries to put one again on condition that\n" +
			"it is not there, compares the clocks, and removes them. It prints what works. What the storage cannot do is done in another way\n" +
			"where there is one, and this says which.\n\n" +
			"Exit status: 0 the archive can be kept there; 1 it cannot, or what is archived could be overwritten.",
		Example: "  holdfast st check\n  holdfast st check -t all\n  holdfast st check read wal_005/00000002.history.zst",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return a.usage(cmd, &unknownError{"st check " + args[0], "it is `st check`, `st check read` or `st check write`"})
			}
			s, err := a.loadSt(cmd)
			if err != nil {
				return err
			}
			return a.every(cmd.Context(), s, f, func(ctx context.Context, m failover.Member) error {
				r := examine(ctx, s, m)
				if asJSON {
					return errors.Join(a.printJSON(r), r.err)
				}
				return errors.Join(a.printExam(r), r.err)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	read := &cobra.Command{
		Use:     "read [PATH …]",
		Short:   "Check that the storage can be read",
		Long:    "Lists the root of the storage, and looks for each object PATH. Exit status: 1 when one is missing or nothing can be read.",
		Example: "  holdfast st check read\n  holdfast st check read wal_005/000000010000000000000002.zst",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.loadSt(cmd)
			if err != nil {
				return err
			}
			return a.every(cmd.Context(), s, f, func(ctx context.Context, m failover.Member) error {
				for _, err := range m.Store.List(ctx, "", "") {
					if err != nil {
						return err
					}
				}
				var errs []error
				for _, arg := range args {
					name, err := objectName(arg)
					if err == nil {
						_, err = m.Store.Stat(ctx, name)
					}
					if errors.Is(err, fs.ErrNotExist) {
						err = fmt.Errorf("%s is missing", name)
					}
					errs = append(errs, err)
				}
				if err := errors.Join(errs...); err != nil {
					return err
				}
				a.log.Info("Read check OK")
				return nil
			})
		},
	}
	write := &cobra.Command{
		Use:     "write",
		Short:   "Check that the storage can be written",
		Long:    "Puts a small object of a random name below holdfast/check/, and removes it.",
		Example: "  holdfast st check write",
		Args:    a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.loadSt(cmd)
			if err != nil {
				return err
			}
			return a.every(cmd.Context(), s, f, func(ctx context.Context, m failover.Member) error {
				name := probeName()
				if err := m.Store.Put(ctx, name, bytes.NewReader(probe)); err != nil {
					return err
				}
				if err := m.Store.Delete(ctx, name); err != nil {
					return fmt.Errorf("it can be written, and not cleared: %w", err)
				}
				a.log.Info("Write check OK")
				return nil
			})
		},
	}
	cmd.AddCommand(read, write)
	return cmd
}

// probe is what checks write.
var probe = []byte("holdfast st check: this object may be removed\n")

// probeName returns a name that nobody has.
func probeName() string {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return "holdfast/check/" + hex.EncodeToString(b[:])
}

// exam is what a storage can do.
type exam struct {
	Storage  string    `json:"storage"`
	Location string    `json:"location"`
	Findings []finding `json:"findings"`

	err error // the storage cannot be used
}

// finding is one thing that a storage can do or not.
type finding struct {
	What string `json:"what"`
	OK   bool   `json:"ok"`
	Text string `json:"text"`
}

// note records a finding.
func (e *exam) note(what string, ok bool, format string, args ...any) {
	e.Findings = append(e.Findings, finding{what, ok, fmt.Sprintf(format, args...)})
}

// need records a finding without which the storage is of no use, and reports whether it is as it must be.
func (e *exam) need(what string, err error) bool {
	if err != nil {
		e.note(what, false, "no: %v", err)
		e.err = errors.Join(e.err, err)
		return false
	}
	e.note(what, true, "yes")
	return true
}

// examine tries what a storage can do.
func examine(ctx context.Context, s *config.Settings, m failover.Member) (e *exam) {
	e = &exam{Storage: m.Name}
	lock := ""
	for _, one := range s.Storages() {
		if one.Name == m.Name {
			e.Location = one.Location()
			if b := one.S3; b.LockMode != "" {
				lock = fmt.Sprintf("new objects are locked for %s (S3_RETENTION_MODE=%s), the versions that this check made too", b.LockTime, b.LockMode)
			}
		}
	}
	name, copied := probeName(), probeName()
	var listed error
	for _, err := range m.Store.List(ctx, "", "") {
		listed = err
		break
	}
	begin := time.Now()
	if !e.need("list", listed) || !e.need("put", m.Store.Put(ctx, name, bytes.NewReader(probe))) {
		return e
	}
	end := time.Now()
	clear := []string{name, copied}
	defer func() { // also when the caller is gone
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err := store.DeleteMany(ctx, m.Store, clear)
		if err == nil {
			switch _, gone := m.Store.Stat(ctx, name); {
			case gone == nil:
				err = errors.New("delete: what was deleted is still there")
			case !errors.Is(gone, fs.ErrNotExist):
				err = gone
			}
		}
		e.need("delete", err)
		if lock != "" {
			e.note("object lock", true, "%s", lock)
		}
	}()
	r, err := m.Store.Open(ctx, name)
	e.need("read", same(r, err, probe))
	r, err = m.Store.OpenRange(ctx, name, 9, 8)
	e.need("read a range", same(r, err, probe[9:17]))
	var seen error = errors.New("list: an object that was just put is not there")
	for o, err := range m.Store.List(ctx, "holdfast/check/", "") {
		if err != nil {
			seen = err
			break
		}
		if o.Name == name {
			seen = nil
		}
	}
	e.need("list what was put", seen)
	e.conditional(ctx, m.Store, name)
	switch err := store.Copy(ctx, m.Store, name, copied); {
	case err == nil:
		r, err := m.Store.Open(ctx, copied)
		e.need("copy inside", same(r, err, probe))
	case errors.Is(err, errors.ErrUnsupported):
		e.note("copy inside", false, "no: what is copied passes through this host")
	default:
		e.note("copy inside", false, "no: %v", err)
	}
	if o, err := m.Store.Stat(ctx, name); e.need("stat", err) {
		e.clock(o.Modified, begin, end)
	}
	return e
}

// conditional tries to put an object where one is.
func (e *exam) conditional(ctx context.Context, s store.Store, name string) {
	const what = "put if absent"
	if _, ok := s.(store.PutIfAbsenter); !ok {
		e.note(what, false, "no: wal-push looks first and puts then, so that two hosts that push the same name in one instant can overwrite each other")
		return
	}
	err := store.PutIfAbsent(ctx, s, name, bytes.NewReader([]byte("other content")))
	r, err2 := s.Open(ctx, name)
	switch err2 := same(r, err2, probe); {
	case errors.Is(err, fs.ErrExist) && err2 == nil:
		e.note(what, true, "yes: archived WAL cannot be overwritten, whoever pushes")
	case errors.Is(err, fs.ErrExist):
		e.need(what, err2)
	case err == nil:
		e.need(what, errors.New("put if absent: the storage takes the condition and overwrites all the same: archived WAL could be lost to another host's"))
	default:
		e.need(what, err)
	}
}

// clock compares the storage's clock with ours.
func (e *exam) clock(modified, begin, end time.Time) {
	ahead := modified.Sub(end)
	behind := begin.Truncate(time.Second).Sub(modified) // times are of whole seconds in many services
	const tolerable = time.Minute
	switch {
	case ahead > 2*time.Second:
		e.note("clock", ahead < tolerable, "the storage's is %s ahead of this host's", ahead.Round(time.Second))
	case behind > 2*time.Second:
		e.note("clock", behind < tolerable, "the storage's is %s behind this host's", behind.Round(time.Second))
	default:
		e.note("clock", true, "as this host's")
	}
}

// same returns an error unless the body is want.
func same(r io.ReadCloser, err error, want []byte) error {
	if err != nil {
		return err
	}
	defer r.Close() // only read: nothing to lose
	got, err := io.ReadAll(io.LimitReader(r, int64(len(want))+1))
	if err == nil && !bytes.Equal(got, want) {
		err = errors.New("read back: what was read is not what was put")
	}
	return err
}

// printExam prints what was found for people.
func (a *app) printExam(e *exam) error {
	_, err := fmt.Fprintf(a.env.Stdout, "storage %s: %s\n", e.Storage, e.Location)
	for _, f := range e.Findings {
		if err == nil {
			_, err = fmt.Fprintf(a.env.Stdout, "  %-18s %s\n", f.What, f.Text)
		}
	}
	return err
}
