package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"holdfast/internal/atomicfile"
	"holdfast/internal/compress"
	"holdfast/internal/config"
	"holdfast/internal/crypt"
	"holdfast/internal/store"
	"holdfast/internal/store/failover"
)

// stFlags are those of all storage tools.
type stFlags struct {
	target string
	glob   bool
}

func (a *app) st() *cobra.Command {
	f := &stFlags{}
	cmd := &cobra.Command{
		Use:   "st COMMAND",
		Short: "Look at the storage, and move objects in it and between storages",
		Long: "Tools that work on the objects of a storage, whatever they mean: nothing here knows of backups, but `st transfer backups`. Paths are\n" +
			"relative to the root of the archive. With -g they are patterns, in which * and ? match no slash.",
		Example: "  holdfast st check\n  holdfast st ls -r basebackups_005\n  holdfast st cat basebackups_005/base_000000010000000000000003/metadata.json",
		Args:    cobra.ArbitraryArgs,
		RunE:    a.onlyBelow("`holdfast help st` lists the tools"),
	}
	p := cmd.PersistentFlags()
	p.StringVarP(&f.target, "target", "t", config.Default, "storage to work on, by name; all for each of them")
	p.BoolVarP(&f.glob, "glob", "g", false, "paths are patterns")
	cmd.AddCommand(a.stLs(f), a.stStat(f), a.stGet(f), a.stCat(f), a.stPut(f), a.stRm(f), a.stCheck(f), a.stTransfer(f), a.stRepay(), a.stAudit())
	return cmd
}

// loadSt reads the settings of a storage tool, which names its storage itself.
func (a *app) loadSt(cmd *cobra.Command) (*config.Settings, error) {
	s, err := a.load(cmd)
	if err == nil {
		s.Target = ""
	}
	return s, err
}

// each calls do with the storage that is asked for. With all it goes on past a storage that fails, and fails when all do.
func (a *app) each(ctx context.Context, s *config.Settings, f *stFlags, do func(context.Context, failover.Member) error) error {
	if target := strings.ToLower(f.target); target != "all" {
		var names []string
		for _, one := range s.Storages() {
			names = append(names, one.Name)
		}
		if !slices.Contains(names, target) {
			return &advised{fmt.Errorf("there is no storage %q", f.target), "name one of: " + strings.Join(names, ", ") + ", all"}
		}
		s.Target = target // the others need not be opened
	}
	members, err := a.stores(ctx, s, 0)
	if err != nil {
		return err
	}
	if len(members) == 1 {
		return do(ctx, members[0])
	}
	var errs []error
	for _, m := range members {
		a.log.Info("storage " + m.Name)
		if err := do(ctx, m); err != nil {
			a.log.Error(fmt.Sprintf("storage %s: %v", m.Name, err))
			errs = append(errs, err)
		}
	}
	if len(errs) == len(members) {
		return fmt.Errorf("all storages failed: %w", errs[0])
	}
	return nil
}

// every is each where one storage that fails is a failure, as of a check, or of storing: who hears nothing takes it for done everywhere.
func (a *app) every(ctx context.Context, s *config.Settings, f *stFlags, do func(context.Context, failover.Member) error) error {
	var errs []error
	err := a.each(ctx, s, f, func(ctx context.Context, m failover.Member) error {
		err := do(ctx, m)
		if err != nil {
			errs = append(errs, fmt.Errorf("storage %s: %w", m.Name, err))
		}
		return err
	})
	if err == nil && len(errs) > 0 {
		err = fmt.Errorf("not all storages are fine: %w", errs[0])
	}
	return err
}

// errVersions refuses what only WAL-G can do.
var errVersions = &advised{errors.New("this release looks at the current versions of objects only"), "use the tool of the service for others, such as `aws s3api list-object-versions`"}

// versionFlags adds WAL-G's flags for versions of objects, which are refused.
func versionFlags(cmd *cobra.Command) func() error {
	all := cmd.Flags().Bool("all-versions", false, "of WAL-G, refused")
	id := cmd.Flags().String("version-id", "", "of WAL-G, refused")
	for _, name := range []string{"all-versions", "version-id"} {
		_ = cmd.Flags().MarkHidden(name) // it was made above
	}
	return func() error {
		if *all || *id != "" {
			return errVersions
		}
		return nil
	}
}

// objectName returns the name of the object that a path names.
func objectName(p string) (string, error) {
	name := strings.Trim(p, "/")
	return name, store.CheckName(name)
}

// dirName returns the name of the directory that a path names, "" for the root.
func dirName(p string) (string, error) {
	dir := strings.Trim(p, "/")
	if dir == "" || dir == "." {
		return "", nil
	}
	return dir + "/", store.CheckDir(dir + "/")
}

// match yields the objects and directories that the pattern names, in order.
func match(ctx context.Context, s store.Store, pattern string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		pattern := strings.Trim(pattern, "/")
		if _, err := path.Match(pattern, ""); err != nil {
			yield(store.Object{}, fmt.Errorf("pattern %q: %w", pattern, err))
			return
		}
		matchBelow(ctx, s, "", strings.Split(pattern, "/"), yield)
	}
}

func matchBelow(ctx context.Context, s store.Store, dir string, parts []string, yield func(store.Object, error) bool) bool {
	literal, _, _ := strings.Cut(parts[0], "*")
	if i := strings.IndexAny(literal, `?[\`); i >= 0 {
		literal = literal[:i]
	}
	for o, err := range s.List(ctx, dir, "") {
		if err != nil {
			yield(store.Object{}, err)
			return false
		}
		base := path.Base(o.Name)
		if base > literal && !strings.HasPrefix(base, literal) {
			return true // nothing that follows can match
		}
		ok, _ := path.Match(parts[0], base) // the pattern is a good one
		switch {
		case !ok, len(parts) > 1 && !o.IsDir():
		case len(parts) == 1:
			if !yield(o, nil) {
				return false
			}
		case !matchBelow(ctx, s, o.Name, parts[1:], yield):
			return false
		}
	}
	return true
}

// named returns the objects that a path names: one, or with a pattern those that match. That there is none is an error.
func (f *stFlags) named(ctx context.Context, s store.Store, p string) ([]store.Object, error) {
	if !f.glob {
		name, err := objectName(p)
		if err != nil {
			return nil, err
		}
		o, err := s.Stat(ctx, name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("object %q does not exist", name)
		}
		return []store.Object{o}, err
	}
	var found []store.Object
	for o, err := range match(ctx, s, p) {
		if err != nil {
			return nil, err
		}
		if !o.IsDir() {
			found = append(found, o)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no object matches %q", p)
	}
	return found, nil
}

// listing prints objects in WAL-G's columns. It lines them up a few thousand at a time, so that memory has a bound.
type listing struct {
	w *tabwriter.Writer
	n int
}

func (a *app) newListing() *listing {
	l := &listing{w: tabwriter.NewWriter(a.env.Stdout, 0, 0, 1, ' ', 0)}
	fmt.Fprintln(l.w, "type\tsize\tlast modified\tname")
	return l
}

// add prints o under the given name.
func (l *listing) add(o store.Object, name string) error {
	kind := "obj"
	if o.IsDir() {
		kind = "dir"
	}
	fmt.Fprintf(l.w, "%s\t%d\t%s\t%s\n", kind, o.Size, o.Modified.UTC(), cell(name))
	if l.n++; l.n%4096 == 0 {
		return l.w.Flush()
	}
	return nil
}

func (a *app) stLs(f *stFlags) *cobra.Command {
	var recursive bool
	cmd := &cobra.Command{
		Use:   "ls [PATH]",
		Short: "List a directory of the storage",
		Long: "Lists the objects and directories in PATH, or with -r all objects below it, in order of names, which are relative to PATH. With -g it\n" +
			"lists what matches the pattern PATH, with -r also what is below.",
		Example: "  holdfast st ls\n  holdfast st ls -r basebackups_005\n  holdfast st ls -g 'wal_005/*.history.*'",
		Args:    a.args(cobra.MaximumNArgs(1)),
	}
	cmd.Flags().BoolVarP(&recursive, "recursive", "r", false, "all objects below")
	versions := versionFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		where := ""
		if len(args) == 1 {
			where = args[0]
		}
		if err := versions(); err != nil {
			return err
		}
		s, err := a.loadSt(cmd)
		if err != nil {
			return err
		}
		return a.each(cmd.Context(), s, f, func(ctx context.Context, m failover.Member) error {
			l := a.newListing()
			if err := f.list(ctx, m.Store, where, recursive, l); err != nil {
				return errors.Join(l.w.Flush(), err)
			}
			return l.w.Flush()
		})
	}
	return cmd
}

func (f *stFlags) list(ctx context.Context, s store.Store, where string, recursive bool, l *listing) error {
	all := func(objects iter.Seq2[store.Object, error], below string) error {
		for o, err := range objects {
			if err == nil {
				err = l.add(o, strings.TrimPrefix(o.Name, below))
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	if f.glob && where != "" {
		for o, err := range match(ctx, s, where) {
			switch {
			case err != nil:
				return err
			case o.IsDir() && recursive:
				err = all(store.Walk(ctx, s, o.Name), "")
			default:
				err = l.add(o, o.Name)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	dir, err := dirName(where)
	switch {
	case err != nil:
		return err
	case recursive:
		return all(store.Walk(ctx, s, dir), dir)
	}
	return all(s.List(ctx, dir, ""), dir)
}

func (a *app) stStat(f *stFlags) *cobra.Command {
	return &cobra.Command{
		Use:     "stat PATH",
		Short:   "Describe one object",
		Long:    "Prints size and time of the object PATH in the form of `st ls`. Exit status: 1 when there is no such object.",
		Example: "  holdfast st stat wal_005/000000010000000000000002.zst",
		Args:    a.args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.loadSt(cmd)
			if err != nil {
				return err
			}
			return a.each(cmd.Context(), s, f, func(ctx context.Context, m failover.Member) error {
				found, err := f.named(ctx, m.Store, args[0])
				if err != nil {
					return err
				}
				l := a.newListing()
				for _, o := range found {
					if err := l.add(o, o.Name); err != nil {
						return err
					}
				}
				return l.w.Flush()
			})
		},
	}
}

// plainObject reports whether objects of that name are never encrypted: the documents of the archive, such as sentinels.
func plainObject(name string) bool {
	dir, _, _ := strings.Cut(name, "/")
	return strings.HasSuffix(name, ".json") && slices.Contains([]string{"basebackups_005", "wal_005", "holdfast"}, dir)
}

// open reads an object, decrypted and decompressed as is asked for.
func (a *app) open(ctx context.Context, s *config.Settings, st store.Store, name string, decrypt, decompress bool) (io.ReadCloser, error) {
	var keys *crypt.Keyring
	if decrypt && !plainObject(name) {
		var err error
		if keys, err = a.openKeys(ctx, s); err != nil {
			return nil, err
		}
	}
	raw, err := st.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	d := &decoded{name: name, ReadCloser: raw, closers: []io.Closer{raw}}
	if keys != nil {
		d.ReadCloser = keys.Decrypt(d.ReadCloser)
		d.closers = append(d.closers, d.ReadCloser)
	}
	if _, method := compress.Split(name); decompress && method != compress.None {
		d.ReadCloser = compress.Decompress(d.ReadCloser, method)
		d.closers = append(d.closers, d.ReadCloser)
	}
	return d, nil
}

// decoded is an object as it is read, with what was opened for that.
type decoded struct {
	io.ReadCloser
	name    string
	closers []io.Closer // the innermost first
}

func (d *decoded) Read(p []byte) (int, error) {
	n, err := d.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("read %s: %w", d.name, err)
	}
	return n, err
}

func (d *decoded) Close() error {
	var errs []error
	for i := range d.closers {
		errs = append(errs, d.closers[len(d.closers)-1-i].Close())
	}
	return errors.Join(errs...)
}

func (a *app) stGet(f *stFlags) *cobra.Command {
	var noDecrypt, noDecompress bool
	cmd := &cobra.Command{
		Use:   "get PATH DST",
		Short: "Bring an object into a file",
		Long: "Brings the object PATH into the file DST, which must not be there yet, or into the directory DST, under its name without the extension\n" +
			"of what it was compressed with. It is decrypted with the keys that are set (but for the archive's documents, *.json, which are never encrypted) and\n" +
			"decompressed as its extension says. DST appears when it is whole.",
		Example: "  holdfast st get wal_005/000000010000000000000002.zst /tmp/\n  holdfast st get --no-decompress wal_005/00000002.history.lz4 /tmp/history.lz4",
		Args:    a.args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.loadSt(cmd)
			if err != nil {
				return err
			}
			return a.each(cmd.Context(), s, f, func(ctx context.Context, m failover.Member) error {
				found, err := f.named(ctx, m.Store, args[0])
				if err != nil {
					return err
				}
				info, err := os.Stat(args[1])
				into := err == nil && info.IsDir()
				if len(found) > 1 && !into {
					return fmt.Errorf("%d objects match %q, and %s is not a directory to put them into", len(found), args[0], args[1])
				}
				for _, o := range found {
					dst := args[1]
					if into {
						base := path.Base(o.Name)
						if plain, method := compress.Split(base); !noDecompress && method != compress.None {
							base = plain
						}
						dst = filepath.Join(dst, base)
					}
					if err := a.get(ctx, s, m.Store, o.Name, dst, !noDecrypt, !noDecompress); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&noDecrypt, "no-decrypt", false, "leave it encrypted")
	cmd.Flags().BoolVar(&noDecompress, "no-decompress", false, "leave it compressed")
	return cmd
}

// get writes an object to a file that is not there yet.
func (a *app) get(ctx context.Context, s *config.Settings, st store.Store, name, dst string, decrypt, decompress bool) error {
	r, err := a.open(ctx, s, st, name, decrypt, decompress)
	if err != nil {
		return err
	}
	defer r.Close() // only read: nothing to lose
	if _, err := os.Lstat(dst); err == nil {
		return fmt.Errorf("%s is there already", dst)
	}
	return atomicfile.Write(dst, 0o640, func(w io.Writer) error { _, err := io.Copy(w, r); return err })
}

func (a *app) stCat(f *stFlags) *cobra.Command {
	var decrypt, decompress bool
	cmd := &cobra.Command{
		Use:     "cat PATH",
		Short:   "Print an object",
		Long:    "Writes the object PATH to standard output, as it is stored unless --decrypt or --decompress is given.",
		Example: "  holdfast st cat basebackups_005/base_000000010000000000000003_backup_stop_sentinel.json\n  holdfast st cat --decrypt --decompress wal_005/00000002.history.zst",
		Args:    a.args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.loadSt(cmd)
			if err != nil {
				return err
			}
			return a.each(cmd.Context(), s, f, func(ctx context.Context, m failover.Member) error {
				found, err := f.named(ctx, m.Store, args[0])
				if err != nil {
					return err
				}
				for _, o := range found {
					r, err := a.open(ctx, s, m.Store, o.Name, decrypt, decompress)
					if err != nil {
						return err
					}
					_, err = io.Copy(a.env.Stdout, r)
					if err := errors.Join(err, r.Close()); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&decrypt, "decrypt", false, "decrypt it with the keys that are set")
	cmd.Flags().BoolVar(&decompress, "decompress", false, "decompress it as its extension says")
	return cmd
}

func (a *app) stPut(f *stFlags) *cobra.Command {
	var force, stdin, noEncrypt, noCompress bool
	cmd := &cobra.Command{
		Use:   "put LOCAL DST",
		Short: "Store a file as an object",
		Long: "Stores the file LOCAL, or with -s standard input, as the object DST, to which the extension of the compression method is added. It is\n" +
			"compressed and encrypted as WAL is. An object that is there already is only replaced with -f.",
		Example: "  holdfast st put notes.txt notes/2026.txt\n  pg_dump app | holdfast st put -s dumps/app.sql",
		Args: func(cmd *cobra.Command, args []string) error {
			if stdin {
				return a.args(cobra.ExactArgs(1))(cmd, args)
			}
			return a.args(cobra.ExactArgs(2))(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.loadSt(cmd)
			if err != nil {
				return err
			}
			name, err := objectName(args[len(args)-1])
			if err != nil {
				return err
			}
			if stdin && f.target == "all" {
				return errors.New("standard input can be read once: with -s name one storage")
			}
			return a.every(cmd.Context(), s, f, func(ctx context.Context, m failover.Member) error {
				src := io.NopCloser(a.env.Stdin)
				if !stdin {
					if src, err = os.Open(args[0]); err != nil {
						return err
					}
				}
				defer src.Close() // only read: nothing to lose
				return a.put(ctx, s, m.Store, src, name, force, !noEncrypt, !noCompress)
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "replace an object that is there")
	cmd.Flags().BoolVarP(&stdin, "read-stdin", "s", false, "store standard input")
	cmd.Flags().BoolVar(&noEncrypt, "no-encrypt", false, "do not encrypt it")
	cmd.Flags().BoolVar(&noCompress, "no-compress", false, "do not compress it")
	return cmd
}

// put stores what src yields.
func (a *app) put(ctx context.Context, s *config.Settings, st store.Store, src io.Reader, name string, force, encrypt, pack bool) error {
	if pack {
		method, err := compress.ParseMethod(s.Compression.Method)
		if err != nil {
			return err
		}
		level, err := compress.ParseLevel(s.Compression.Level)
		if err != nil {
			return err
		}
		z := compress.Compress(src, method, compress.Options{Level: level, Parallel: 1})
		defer z.Close() // gives its buffers back
		src, name = z, name+method.Extension()
	}
	if encrypt {
		keys, err := a.openKeys(ctx, s)
		if err != nil {
			return err
		}
		if keys != nil {
			if _, _, err := writes(keys); err != nil {
				return err
			}
			if plainObject(name) {
				return &advised{fmt.Errorf("%s is the name of a document, which is read in clear, and a key is set", name), "--no-encrypt stores it as it is"}
			}
			e := keys.Encrypt(src)
			defer e.Close() // gives its buffers back
			src = e
		}
	}
	if force {
		return st.Put(ctx, name, src)
	}
	err := store.PutIfAbsent(ctx, st, name, src)
	if errors.Is(err, fs.ErrExist) {
		return &advised{fmt.Errorf("object %s already exists", name), "-f replaces it"}
	}
	return err
}

func (a *app) stRm(f *stFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rm PREFIX",
		Short: "Remove an object, and everything below a directory of that name",
		Long: "Removes the object PREFIX and all objects below the directory PREFIX. It asks nothing and knows nothing of backups: what it removes of\n" +
			"one makes that backup worthless. Exit status: 1 when there is nothing of that name.",
		Example: "  holdfast st rm notes/2026.txt.zst\n  holdfast st rm -t second dumps",
		Args:    a.args(cobra.ExactArgs(1)),
	}
	versions := versionFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := versions(); err != nil {
			return err
		}
		s, err := a.loadSt(cmd)
		if err != nil {
			return err
		}
		return a.each(cmd.Context(), s, f, func(ctx context.Context, m failover.Member) error {
			names := []string{strings.Trim(args[0], "/")}
			if f.glob {
				names = nil
				for o, err := range match(ctx, m.Store, args[0]) {
					if err != nil {
						return err
					}
					names = append(names, strings.TrimSuffix(o.Name, "/"))
				}
			}
			removed := 0
			for _, name := range names {
				n, err := remove(ctx, m.Store, name)
				removed += n
				if err != nil {
					return err
				}
			}
			if removed == 0 {
				return fmt.Errorf("object or directory %q does not exist", args[0])
			}
			a.log.Info(fmt.Sprintf("removed %d objects", removed))
			return nil
		})
	}
	return cmd
}

// remove deletes the object name and all below the directory name, and returns how many there were.
func remove(ctx context.Context, s store.Store, name string) (n int, err error) {
	if err := store.CheckName(name); err != nil {
		return 0, err
	}
	var names []string
	flush := func() error {
		err := store.DeleteMany(ctx, s, names)
		if err == nil {
			n += len(names)
		}
		names = names[:0]
		return err
	}
	// By listing: who may remove objects need not be let read them.
	for o, err := range s.List(ctx, strings.TrimSuffix(name, path.Base(name)), name[:len(name)-1]) {
		if err != nil {
			return 0, err
		}
		if o.Name == name {
			names = append(names, name)
		}
		if o.Name >= name {
			break
		}
	}
	for o, err := range store.Walk(ctx, s, name+"/") {
		if err != nil {
			return n, err
		}
		if names = append(names, o.Name); len(names) == 1000 {
			if err := flush(); err != nil {
				return n, err
			}
		}
	}
	if len(names) > 0 {
		err = flush()
	}
	return n, err
}

func (a *app) stTransfer(f *stFlags) *cobra.Command {
	var source string
	var o failover.TransferOptions
	cmd := &cobra.Command{
		Use:   "transfer COMMAND",
		Short: "Move objects from one storage to another",
		Long: "Moves objects between the storages of WALG_FAILOVER_STORAGES or HOLDFAST_MIRRORS, as when the primary storage is back and what was\n" +
			"written elsewhere meanwhile is to go there: each is copied, seen to be in the target, and then removed from the source. What the\n" +
			"target has already is compared and counts as copied when it is the same.",
		Example: "  holdfast st transfer pg-wals --source second\n  holdfast st transfer backups --source second --target default",
		Args:    cobra.ArbitraryArgs,
		RunE:    a.onlyBelow("it is `st transfer files`, `pg-wals` or `backups`"),
	}
	p := cmd.PersistentFlags()
	p.StringVarP(&source, "source", "s", "", "storage to move from")
	p.BoolVarP(&o.Overwrite, "overwrite", "o", false, "replace what the target has with other content")
	p.BoolVarP(&o.Preserve, "preserve", "p", false, "leave the source as it is")
	p.BoolVar(&o.FailFast, "fail-fast", false, "stop at the first failure")
	p.IntVarP(&o.Concurrency, "concurrency", "c", 10, "objects moved at once")
	p.IntVarP(&o.MaxFiles, "max-files", "m", 0, "objects to move at most; 0 is no limit")
	p.IntVar(&o.Checks, "appearance-checks", 3, "how often to look whether a copy is to be seen in the target")
	p.DurationVar(&o.Interval, "appearance-checks-interval", time.Second, "time between these looks")

	run := func(kind failover.Kind) func(*cobra.Command, []string) error {
		return func(cmd *cobra.Command, args []string) error {
			s, err := a.loadSt(cmd)
			if err != nil {
				return err
			}
			name := ""
			if len(args) == 1 {
				name = args[0]
			}
			return a.transfer(cmd.Context(), s, strings.ToLower(source), strings.ToLower(f.target), kind, name, o)
		}
	}
	files := &cobra.Command{
		Use: "files PREFIX", Short: "Move all objects below a directory",
		Long:    "Moves everything below the directory PREFIX. A backup is moved whole, by `st transfer backups`.",
		Example: "  holdfast st transfer files dumps --source second",
		Args:    a.args(cobra.ExactArgs(1)), RunE: run(failover.Files),
	}
	wals := &cobra.Command{
		Use: "pg-wals", Short: "Move all WAL",
		Long:    "Moves all WAL files.",
		Example: "  holdfast st transfer pg-wals --source second",
		Args:    a.args(cobra.NoArgs), RunE: run(failover.WAL),
	}
	backups := &cobra.Command{
		Use: "backups [NAME]", Short: "Move backups",
		Long:    "Moves all backups, or the one called NAME, each so that at every moment one of the storages has it whole. Backups that are being written stay.",
		Example: "  holdfast st transfer backups --source second --max-backups 2",
		Args:    a.args(cobra.MaximumNArgs(1)), RunE: run(failover.Backups),
	}
	backups.Flags().IntVar(&o.MaxBackups, "max-backups", 0, "backups to move at most; 0 is no limit")
	cmd.AddCommand(files, wals, backups)
	return cmd
}

// transfer moves objects from one storage to another.
func (a *app) transfer(ctx context.Context, s *config.Settings, from, to string, kind failover.Kind, name string, o failover.TransferOptions) error {
	switch {
	case from == "":
		return errors.New("--source is missing: name the storage to move from")
	case from == "all" || to == "all":
		return errors.New("name one storage to move from and one to move to, not all")
	case o.Concurrency < 1 || o.MaxFiles < 0 || o.MaxBackups < 0 || o.Checks < 0:
		return errors.New("--concurrency is at least 1, and no other number below 0")
	}
	if o.Checks == 0 {
		o.Checks = -1 // the flag's 0 is never
	}
	members, err := a.stores(ctx, s, 0)
	if err != nil {
		return err
	}
	several, err := a.failover(s, members)
	if err != nil {
		return err
	}
	prefix := ""
	switch {
	case kind == failover.Files:
		prefix = name
	case name != "":
		o.MaxBackups, o.MaxFiles = 0, 0
	}
	plan, err := several.PlanTransfer(ctx, from, to, kind, prefix, o)
	if err != nil {
		return err
	}
	if kind == failover.Backups && name != "" {
		var one []failover.Unit
		for _, u := range plan.Units {
			if u.Backup == name {
				one = append(one, u)
			}
		}
		if plan.Units = one; one == nil {
			return fmt.Errorf("storage %s has no backup %s", from, name)
		}
	}
	for _, skip := range plan.Skipped {
		a.log.Info(fmt.Sprintf("%s stays: %s", skip.Name, skip.Reason))
	}
	report, err := several.Transfer(ctx, plan, o)
	if report != nil {
		a.log.Info(fmt.Sprintf("copied %d objects (%d bytes) from %s to %s, %d were there already; removed %d, moved %d backups",
			report.Copied, report.Bytes, from, to, report.Equal, report.Removed, report.Backups))
	}
	return err
}
