// Package sftp keeps objects as files below a directory of another host, over SSH's file transfer protocol.
//
// An object is written to a temporary file beside its final name and renamed when it is whole. Temporary files are named
//
//	<name>.tmp.<YYYYMMDDTHHMMSSZ>-<16 hex digits>
//
// as WAL-G names them. They never appear as objects, and Sweep removes those that are old. The modes of new files and directories are
// those that the server gives them.
//
// What the server offers decides what is promised. With OpenSSH's extensions, which OpenSSH has since 6.5:
//
//   - fsync@openssh.com: an object is durable once its put returned nil. It is synced before it gets its name and again after, which
//     makes the name durable too on ext4, XFS and btrfs; the protocol has no sync of a directory. Deletions are as durable as the
//     server's file system makes them by itself. Without the extension a crash of the server, not of this process, may lose what was
//     put in the last seconds or minutes, and a warning says so.
//   - posix-rename@openssh.com: a put replaces an object in one instant. Without it the old object is removed just before.
//   - hardlink@openssh.com: PutIfAbsent decides atomically. Without it, or on a file system without hard links, it looks first and then
//     renames: one of two writers in the same instant fails only if the server refuses to rename over a file, as the protocol's
//     draft wants it.
//
// A host's key must be in the known_hosts files; there is no way around it. Calls share a few connections, and a connection over
// which nothing comes is given up and made anew: reads and puts under way go on where they were. Each of them takes 3 MiB of memory,
// and each connection what SSH lets be under way, 2 MiB.
package sftp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/internal/store"
	"holdfast/internal/store/patience"
	"holdfast/internal/store/unfinished"
)

// Options says which directory of which host, and how to get there. Host, Root and one of PrivateKeyFile, AgentSocket and Password are
// required; the rest works as zero value. The comments give WAL-G's names of the settings.
type Options struct {
	Host string // WALG_SSH_PREFIX, ssh://host/absolute/path
	Root string // the path of WALG_SSH_PREFIX; the directory must exist
	Port int    // SSH_PORT; 0 means 22
	User string // SSH_USERNAME; "" is the user that this process runs as

	PrivateKeyFile string // SSH_PRIVATE_KEY_PATH; comes first
	Passphrase     string // of the private key; no setting of WAL-G's
	AgentSocket    string // SSH_AUTH_SOCK, a variable of ssh and no setting of WAL-G's; its keys come second
	Password       string // SSH_PASSWORD; comes last

	KnownHosts []string // files; none means ~/.ssh/known_hosts and /etc/ssh/ssh_known_hosts; no setting of WAL-G's

	Connections int // that calls share; 0 means 4; no setting of WAL-G's

	MaxRetries int           // of one call without progress; 0 means 15, below 0 none
	MaxBackoff time.Duration // between two tries; 0 means 20 s
	Patience   time.Duration // from the first failure without progress, after which nothing is tried again; 0 means MaxRetries times MaxBackoff, or 5 min if that is more
	Retried    *atomic.Int64 // counts the tries behind the first; nil is not counted

	Logger *slog.Logger // hears of every call that will be made again, and of what the server lacks; nil discards

	// Wrap returns each new connection as it is to be used, such as under a limit; nil leaves them. Time that a call on the
	// result waits before it calls the connection does not count towards StallTimeout.
	Wrap func(net.Conn) net.Conn

	// StallTimeout is how long a connection may go without a byte, although we ask for one three times meanwhile, and a call without
	// an answer; 0 means 30 s. A sync, during which a server that is there is silent, may take ten times as long.
	StallTimeout time.Duration
}

// Store keeps objects below one directory of a host. It is a store.PutIfAbsenter, ManyDeleter and Sweeper. Directories appear with the
// first object in them and go with the last.
type Store struct {
	o      Options
	pool   *pool
	retry  *patience.Policy
	pieces sync.Pool // of *[]byte with pieceSize bytes

	warned     atomic.Bool // that the server cannot sync
	noHardLink atomic.Bool // the file system has none
}

// New returns the Store. It reads the user's name and nothing else; the first call connects.
func New(o Options) (*Store, error) {
	if err := o.complete(); err != nil {
		return nil, fmt.Errorf("storage ssh://%s%s: %w", o.Host, o.Root, err)
	}
	s := &Store{o: o}
	s.retry = &patience.Policy{Service: "SFTP", MaxRetries: o.MaxRetries, MaxBackoff: o.MaxBackoff, Patience: o.Patience,
		MayPass: func(err error) bool { return !stays(err) }, Reason: error.Error, Logger: o.Logger, Retried: o.Retried}
	s.pool = &pool{o: &s.o, changed: make(chan struct{})}
	return s, nil
}

// complete checks o and fills in what 0 means.
func (o *Options) complete() error {
	if o.Host == "" || strings.ContainsAny(o.Host, "/@ ") {
		return fmt.Errorf("%q is not the name of a host: WALG_SSH_PREFIX is ssh://host/absolute/path", o.Host)
	}
	if !path.IsAbs(o.Root) {
		return fmt.Errorf("%q is not an absolute path: WALG_SSH_PREFIX is ssh://host/absolute/path", o.Root)
	}
	o.Root = path.Clean(o.Root)
	o.Port = cmp.Or(o.Port, 22)
	if o.Port < 1 || o.Port > 65535 {
		return fmt.Errorf("SSH_PORT is %d, and not between 1 and 65535", o.Port)
	}
	if o.PrivateKeyFile == "" && o.AgentSocket == "" && o.Password == "" {
		return errors.New("set SSH_PRIVATE_KEY_PATH or SSH_PASSWORD, or run an agent (SSH_AUTH_SOCK)")
	}
	if o.User == "" || len(o.KnownHosts) == 0 {
		self, err := user.Current()
		if err != nil && o.User == "" {
			return fmt.Errorf("set SSH_USERNAME, for this process does not know who it is: %w", err)
		}
		if o.User == "" {
			o.User = self.Username
		}
		if len(o.KnownHosts) == 0 {
			if err == nil {
				o.KnownHosts = append(o.KnownHosts, filepath.Join(self.HomeDir, ".ssh", "known_hosts"))
			}
			o.KnownHosts = append(o.KnownHosts, "/etc/ssh/ssh_known_hosts")
		}
	}
	o.Connections = max(cmp.Or(o.Connections, 4), 1)
	o.MaxRetries = max(cmp.Or(o.MaxRetries, 15), 0)
	o.MaxBackoff = cmp.Or(o.MaxBackoff, 20*time.Second)
	o.Patience = cmp.Or(o.Patience, max(time.Duration(o.MaxRetries)*o.MaxBackoff, 5*time.Minute))
	o.StallTimeout = cmp.Or(o.StallTimeout, 30*time.Second)
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	if o.Wrap == nil {
		o.Wrap = func(c net.Conn) net.Conn { return c }
	}
	return nil
}

// Close ends the connections. The Store cannot be used afterwards, nor can objects being read.
func (s *Store) Close() error {
	s.pool.close()
	return nil
}

// path returns the path of an object, or of a directory with or without "/" at its end, on the server.
func (s *Store) path(name string) string { return path.Join(s.o.Root, name) }

// check refuses what cannot be an object's name here.
func check(ctx context.Context, op, name string) error {
	if err := unfinished.Check(op, name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return &store.OpError{Op: op, Name: name, Text: err.Error(), Err: err}
	}
	return nil
}

// do makes a call over some connection, and again over another as long as connections get lost.
func (s *Store) do(ctx context.Context, what string, call func(c *conn) error) error {
	for t := (patience.Tries{}); ; {
		c, err := s.pool.take(ctx)
		if err == nil {
			err = c.call(ctx, s.o.StallTimeout, func() error { return call(c) })
			c.release()
		}
		if err == nil || answered(err) || ctx.Err() != nil {
			return err
		}
		if err := s.retry.Again(ctx, &t, what, err); err != nil {
			return err
		}
	}
}

// Stat implements store.Store.
func (s *Store) Stat(ctx context.Context, name string) (store.Object, error) {
	if err := check(ctx, "stat", name); err != nil {
		return store.Object{}, err
	}
	var info fs.FileInfo
	err := s.do(ctx, "stat "+name, func(c *conn) (err error) {
		info, err = c.sftp.Stat(s.path(name))
		return err
	})
	if err == nil && !info.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		return store.Object{}, s.failMissing(ctx, "stat", name, err)
	}
	return store.Object{Name: name, Size: info.Size(), Modified: info.ModTime()}, nil
}

// failMissing is fail, but an object is only missing if the root is not.
func (s *Store) failMissing(ctx context.Context, op, name string, err error) error {
	if s.gone(ctx, name, err) {
		if err = s.rootMissing(ctx); err == nil {
			err = fs.ErrNotExist
		}
	}
	return s.fail(ctx, op, name, err)
}

// gone reports whether err, what came of looking for name, says that there is no such file. A file where a directory was asked for
// counts, which some servers do not tell from other failures.
func (s *Store) gone(ctx context.Context, name string, err error) bool {
	if errors.Is(err, fs.ErrNotExist) {
		return true
	}
	if !unexplained(err) {
		return false
	}
	for dir := path.Dir(path.Clean(name)); dir != "."; dir = path.Dir(dir) {
		var info fs.FileInfo
		err := s.do(ctx, "stat "+dir, func(c *conn) (err error) {
			info, err = c.sftp.Stat(s.path(dir))
			return err
		})
		if err == nil {
			return !info.IsDir()
		}
		if !errors.Is(err, fs.ErrNotExist) && !unexplained(err) {
			return false
		}
	}
	return false
}

// rootMissing returns nil if the root is a directory.
func (s *Store) rootMissing(ctx context.Context) error {
	return s.do(ctx, "look at the root", func(c *conn) error {
		info, err := c.sftp.Stat(s.o.Root)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
			return &rootError{s.o.Host, s.o.Root}
		}
		return err
	})
}

// Open implements store.Store.
func (s *Store) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	return s.OpenRange(ctx, name, 0, -1)
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, name string) error {
	return s.DeleteMany(ctx, []string{name})
}

// DeleteMany implements store.ManyDeleter.
func (s *Store) DeleteMany(ctx context.Context, names []string) error {
	var errs []error
	dirs := map[string]bool{}
	var valid []string
	for _, name := range names {
		if err := check(ctx, "delete", name); err != nil {
			errs = append(errs, err)
			continue
		}
		valid = append(valid, name)
		dirs[path.Dir(name)] = true
	}
	if len(valid) == 0 {
		return errors.Join(errs...)
	}
	errs = append(errs, store.Each(valid, 16, func(name string) error {
		return s.failMissing(ctx, "delete", name, s.remove(ctx, name))
	}))
	var inner []string
	for dir := range dirs {
		inner = append(inner, dir)
	}
	slices.Sort(inner)
	for _, dir := range slices.Backward(inner) { // what lies in a directory before it
		s.prune(ctx, dir)
	}
	return errors.Join(errs...)
}

// remove removes a file. That it is missing, or a directory, is no error.
func (s *Store) remove(ctx context.Context, name string) error {
	err := s.do(ctx, "delete "+name, func(c *conn) error {
		err := c.sftp.Remove(s.path(name)) // of an empty directory too, which is none to us
		if err != nil && answered(err) && !errors.Is(err, fs.ErrNotExist) {
			if info, statErr := c.sftp.Lstat(s.path(name)); statErr == nil && info.IsDir() {
				return nil
			}
		}
		return err
	})
	if s.gone(ctx, name, err) {
		return s.rootMissing(ctx)
	}
	return err
}

// prune removes dir and the directories above it for as long as nothing lies in them. Errors only leave them there.
func (s *Store) prune(ctx context.Context, dir string) {
	for ; dir != "."; dir = path.Dir(dir) {
		err := s.do(ctx, "remove directory "+dir, func(c *conn) error {
			if info, err := c.sftp.Lstat(s.path(dir)); err != nil {
				return err
			} else if !info.IsDir() { // there are servers that would remove it
				return fs.ErrInvalid
			}
			return c.sftp.RemoveDirectory(s.path(dir))
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return
		}
	}
}

// staleAfter is the age from which a temporary file is taken for one whose writer is gone.
const staleAfter = 24 * time.Hour

// Sweep implements store.Sweeper: it removes temporary files anywhere in the store that are older than a day, both by their name and
// by the time of their last change, which a writer that lives moves on.
func (s *Store) Sweep(ctx context.Context) (removed []string, err error) {
	removed, err = s.sweep(ctx, "", time.Now().Add(-staleAfter))
	if err != nil {
		return removed, fmt.Errorf("sweep: %w", err)
	}
	return removed, nil
}

func (s *Store) sweep(ctx context.Context, dir string, stale time.Time) (removed []string, err error) {
	entries, err := s.readDir(ctx, dir)
	if err != nil {
		return nil, s.fail(ctx, "list", cmp.Or(dir, "/"), err)
	}
	var errs []error
	for _, e := range entries {
		name := dir + e.Name()
		switch begun, temp := unfinished.Since(e.Name()); {
		case e.IsDir() && name != "lost+found":
			below, err := s.sweep(ctx, name+"/", stale)
			removed, errs = append(removed, below...), append(errs, err)
		case !temp || !e.Mode().IsRegular() || begun.After(stale) || e.ModTime().After(stale):
		default:
			if err := s.remove(ctx, name); err != nil {
				errs = append(errs, s.fail(ctx, "remove", name, err))
			} else {
				removed = append(removed, name)
			}
		}
	}
	return removed, errors.Join(errs...)
}

// knownHosts returns those of the files that are there.
func (o *Options) knownHosts() (files []string) {
	for _, file := range o.KnownHosts {
		if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
			files = append(files, file)
		}
	}
	return files
}
