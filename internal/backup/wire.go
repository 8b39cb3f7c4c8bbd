package backup

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"math"
	"path"
	"runtime"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"holdfast/internal/archive"
	"holdfast/internal/compress"
	"holdfast/internal/pg/control"
	"holdfast/internal/pg/datadir"
	"holdfast/internal/pg/page"
	"holdfast/internal/pg/server"
	"holdfast/internal/pg/wal"
	"holdfast/internal/tarpart"
)

// Wire takes a backup of the cluster that conn is a replication session with, into a: the server reads its files and sends them. The result
// is laid out as that of Run, and counts as one. What differs: there is one stream, so Workers compress pieces of one part at a time; a
// page that does not verify is read again by the server (from 11 on); configuration outside the data directory does not come along. The
// caller closes conn. On an error the backup ends on the server, by closing conn, and nothing of it is left in the archive; should
// removing what was stored fail too, the error says so.
func Wire(ctx context.Context, conn *server.Replication, a *archive.Archive, opts Options) (*Report, error) {
	rate := opts.DiskRate
	opts.DiskRate = 0 // the server keeps to it
	w := &wire{run: run{Options: opts, archive: a, backups: a}, repl: conn, seed: maphash.MakeSeed(), noConf: true}
	w.timeline = func(ctx context.Context) (wal.Timeline, error) {
		_, t, err := conn.Position(ctx)
		return t, err
	}
	w.defaults()
	if err := w.prepare(ctx); err != nil {
		return nil, err
	}
	w.rate = maxRate(rate)
	return w.take(ctx)
}

// maxRate is a limit in bytes a second as BASE_BACKUP has it, in kilobytes: 32 to 1048576, and 0 for none.
func maxRate(bytes int64) int {
	const least, most = 32, 1 << 20
	if bytes <= 0 || bytes>>10 > most {
		return 0
	}
	return int(max(bytes>>10, least))
}

// wire is a backup over the wire at work.
type wire struct {
	run
	repl   *server.Replication
	rate   int // kilobytes a second; 0 is no limit
	stream *server.BaseBackup

	current server.Archive // of stream
	tar     *tar.Reader    // of current; nil before the first
	unzip   io.ReadCloser  // below tar where the server compressed; nil otherwise
	file    *passing       // that was handed out last
	held    map[string]*heldMember
	seed    maphash.Seed
	sums    []fileSum // of the files, in the order they came
	noConf  bool      // no postgresql.conf was among them
	zeroed  uint64    // pages that cutOff found
	unsent  error     // what the server does not send, and the backup cannot do without
}

// heldMember is a file that is stored in a place of its own.
type heldMember struct {
	tarpart.Entry
	sum fileSum
}

// Names of the labels in what the server sends.
const (
	labelFile = "backup_label"
	mapFile   = "tablespace_map"
)

// maxHeld bounds such a file in bytes: a map has a line for each tablespace.
const maxHeld = 4 << 20

// prepare checks everything that can be checked before the server is disturbed.
func (w *wire) prepare(ctx context.Context) (err error) {
	w.phase("preparing")
	if err := w.checkUserData(); err != nil {
		return err
	}
	asking, answered := w.patiently(ctx)
	defer answered()
	if w.facts, err = w.repl.Facts(asking); err != nil {
		return err
	}
	if err := w.judge(asking); err != nil {
		return err
	}
	if err := w.claim(ctx); err != nil {
		return err
	}
	w.dir = &datadir.Dir{} // nowhere on this host
	if err := w.timed("catalog", func() error { return w.loadCatalog(ctx) }); err != nil {
		return err
	}
	return w.timed("parent", func() error { return w.choose(ctx) })
}

// take takes the backup and cleans up when it fails.
func (w *wire) take(ctx context.Context) (_ *Report, err error) {
	defer func() {
		if w.unzip != nil {
			w.unzip.Close() // gives its buffers back
		}
		if err != nil {
			err = w.undo(ctx, err, w.repl.Close)
		}
	}()
	if err := w.timed("start", func() error { return w.begin(ctx) }); err != nil {
		return nil, err
	}
	ctx, end := w.beating(ctx)
	defer end()
	if err := w.rest(ctx); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause // why it was cut short, not how it noticed
		}
		return nil, err
	}
	return w.finished(), nil
}

// begin has the server begin, which names the backup.
func (w *wire) begin(ctx context.Context) error {
	w.report.StartTime = time.Now().UTC()
	if err := w.open(ctx); err != nil {
		return err
	}
	for _, s := range w.stream.Spaces {
		if s.OID != 0 {
			t := datadir.Tablespace{OID: s.OID, Location: s.Location}
			if !path.IsAbs(s.Location) { // it lies in pg_tblspc itself
				t.Location = ""
			}
			w.spaces = append(w.spaces, t)
		}
	}
	if len(w.spaces) > 0 && w.facts.DataDirectory == "" {
		w.Logger.Warn("the server does not tell this role where its data directory is: to restore this backup WAL-G needs a --restore-spec; GRANT pg_read_all_settings makes it tell")
	}
	w.total = w.stream.Size
	w.Progress.total.Store(w.total)
	partly := w.delta != nil
	if err := w.begun(ctx); err != nil || partly == (w.delta != nil) {
		return err
	}
	// Its place is not beside the parent, so that it is a full one after all, which the server has to begin anew.
	if err := w.draft.Abort(ctx); err != nil {
		return err
	}
	w.draft, w.spaces = nil, nil
	if err := w.stream.Cancel(); err != nil {
		return err
	}
	return w.begin(ctx)
}

// open has the server begin to send: what has changed since the parent, where there is one and it can, or everything.
func (w *wire) open(ctx context.Context) error {
	if w.delta == nil {
		return w.openAs(ctx, false)
	}
	w.phase("telling the server what " + w.delta.parent.Name + " holds")
	err := w.promise(ctx)
	if err == nil {
		err = w.openAs(ctx, true)
	}
	reason := fmt.Sprintf("The server does not send what has changed since %s.", w.delta.parent.Name)
	switch {
	case err == nil:
		if err = w.findLimits(ctx); err == nil {
			w.report.Delta.Source = Summaries
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		reason = fmt.Sprintf("The archive does not tell what was truncated since %s, which the server leaves out.", w.delta.parent.Name)
		if stop := w.stream.Cancel(); stop != nil {
			return errors.Join(err, stop)
		}
	case !server.Refused(err):
		return err
	}
	if w.Delta.Force || w.Delta.Name != "" || w.Delta.UserData != nil {
		return err
	}
	reason += " Doing full backup."
	w.Logger.Warn(reason, "err", err)
	w.delta, w.report.Delta, w.report.FullBecause = nil, nil, fmt.Sprintf("%s %v", reason, err)
	return w.openAs(ctx, false)
}

// openAs has the server begin to send, compressed as it was asked for.
func (w *wire) openAs(ctx context.Context, incremental bool) error {
	w.phase("waiting for the server's checkpoint")
	codecs := []string{w.WireCodec}
	switch {
	case w.WireCodec == "auto" && w.facts.Major() >= 15:
		codecs = []string{"zstd", "lz4", "gzip", ""}
	case w.WireCodec == "auto":
		codecs = []string{""}
	case w.WireCodec != "" && w.facts.Major() < 15:
		w.Logger.Warn("the server compresses nothing: it is older than PostgreSQL 15")
		codecs = []string{""}
	}
	for i, codec := range codecs {
		opts := server.BaseBackupOptions{
			Label: "holdfast " + w.report.StartTime.Format(time.RFC3339), MaxRate: w.rate, Compression: codec, Incremental: incremental, Silence: w.Patience,
			Warning: func(text string) { w.Logger.Warn("PostgreSQL says: " + text) }, Special: w.special,
		}
		if codec != "" {
			opts.Level = "1" // for the network's sake, not the archive's, which compresses by itself
		}
		stream, err := w.repl.BaseBackup(ctx, opts)
		if err == nil {
			size := w.facts.SegmentSize
			w.stream, w.start = stream, server.Start{LSN: stream.Start, Timeline: stream.Timeline, Standby: w.facts.Standby}
			w.start.Segment = size.Name(w.start.Timeline, size.Segment(w.start.LSN))
			return nil
		}
		if i == len(codecs)-1 || !server.Unsupported(err) {
			return err
		}
	}
	return nil
}

// rest does what follows once the backup is begun.
func (w *wire) rest(ctx context.Context) error {
	if err := w.timed("copy", func() error { return w.copyStream(ctx) }); err != nil {
		return err
	}
	var stop server.Stop
	err := w.timed("stop", func() (err error) { stop, err = w.stop(ctx); return err })
	if err != nil {
		return err
	}
	if err := w.timed("wal", func() error { return w.awaitWAL(ctx, stop.LSN) }); err != nil {
		return err
	}
	if err := w.compareStop(ctx, stop); err != nil {
		return err
	}
	return w.timed("commit", func() error {
		if err := w.checkAncestors(ctx); err != nil {
			return err
		}
		if err := w.markAncestors(ctx); err != nil {
			return err
		}
		s := w.sentinel(stop)
		s.DataDir = w.facts.DataDirectory
		if s.Spec != nil {
			s.Spec.BasePrefix = w.facts.DataDirectory
		}
		return w.draft.Commit(ctx, s)
	})
}

// compareStop is what compareWAL is where there is a directory: of what the archive has of the segment that the backup ends in, the server sends
// its own, to where that ends. It takes another session, and is done without where there is none.
func (w *wire) compareStop(ctx context.Context, stop server.Stop) error {
	if w.start.Standby || w.NoWaitWAL {
		return nil
	}
	size := w.facts.SegmentSize
	begin := size.Start(size.LastSegment(stop.LSN))
	err := w.archive.CompareWAL(ctx, stop.Segment, func() (io.ReadCloser, error) {
		return w.repl.WAL(ctx, stop.Timeline, begin, begin+wal.LSN(size))
	})
	var conflict *archive.ConflictError
	switch {
	case errors.As(err, &conflict):
		return conflict
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil && !errors.Is(err, fs.ErrNotExist): // the server has no use for it any more
		w.Logger.Warn("whether the archive has the server's own WAL is not known", "segment", stop.Segment, "err", err)
	}
	return nil
}

// copyStream stores what the server sends: parts one after the other, then pg_control, then the server's manifest.
func (w *wire) copyStream(ctx context.Context) error {
	w.phase("copying")
	w.draft.Parallel = min(w.Workers, runtime.GOMAXPROCS(0))
	w.held = map[string]*heldMember{}
	pending := []tarpart.Entry{w.root()}
	next := func() (tarpart.Entry, error) {
		if len(pending) > 0 {
			e := pending[0]
			pending = nil
			return e, nil
		}
		return w.next()
	}
	for {
		first, err := next() // so that no part is empty
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		pending = append(pending, first)
		if err := w.putPart(ctx, w.draft.NextPart(), next); err != nil {
			return err
		}
	}
	c := w.held[control.Name]
	if c == nil || w.held[labelFile] == nil {
		return fmt.Errorf("the server sent no %s or no %s", control.Name, labelFile)
	}
	data, err := control.Decode(c.Content)
	if err != nil {
		return fmt.Errorf("%s as the server sent it: %w", control.Name, err)
	}
	if data.SystemIdentifier != w.facts.SystemIdentifier {
		return fmt.Errorf("%s as the server sent it is of the cluster %d, the session is with %d", control.Name, data.SystemIdentifier, w.facts.SystemIdentifier)
	}
	if w.noConf {
		w.Logger.Warn("the server's postgresql.conf is not in its data directory, and over the wire configuration from elsewhere is not backed up: keep it some other way")
	}
	if err := w.putPart(ctx, archive.ControlPart, once(c.Entry)); err != nil {
		return err
	}
	switch {
	case w.current.Manifest:
		return w.putServersManifest(ctx)
	case w.facts.Version >= firstManifest:
		return errors.New("the server sent no manifest of what it sent")
	}
	return nil
}

// special takes down what the server does not send, as it is neither file nor directory. It says so twice: as it sums up sizes, and
// as it sends.
func (w *wire) special(file string) {
	switch {
	case leftOut(file) || slices.Contains(w.report.Skipped, file):
	case own(file):
		w.unsent = &unsentError{file}
	default:
		w.skipped(file, "neither file nor directory")
	}
}

// skipped tells that a file is left out.
func (w *wire) skipped(file, why string) {
	w.report.Skipped = append(w.report.Skipped, file)
	w.Logger.Warn(fmt.Sprintf("left out %q: %s", file, why))
}

// root is the data directory itself, which the server does not send.
func (w *wire) root() tarpart.Entry {
	mode := fs.FileMode(0o700)
	if w.facts.GroupAccess {
		mode = 0o750
	}
	return tarpart.Entry{Path: ".", Type: tarpart.Dir, Mode: mode, ModTime: w.report.StartTime}
}

// next returns the next file or directory to store. It returns io.EOF when the server has sent all, and stands then at its
// manifest, if there is one.
func (w *wire) next() (tarpart.Entry, error) {
	for {
		h, err := w.header()
		if w.unsent != nil {
			err = w.unsent
		}
		if err != nil {
			return tarpart.Entry{}, err
		}
		e, store, err := w.entry(h)
		if err != nil {
			return tarpart.Entry{}, fmt.Errorf("what the server sends as %.200q: %w", h.Name, err)
		}
		if store {
			return e, nil
		}
	}
}

// header returns the next tar header, of whichever archive.
func (w *wire) header() (*tar.Header, error) {
	w.passed()
	for !w.current.Manifest {
		if w.tar != nil {
			h, err := w.tar.Next()
			if err == nil {
				return h, nil
			}
			if err != io.EOF {
				return nil, fmt.Errorf("read the server's tar stream: %w", err)
			}
			// What follows the end must be there, and sound where it is compressed.
			if w.unzip != nil {
				if _, err := io.Copy(io.Discard, w.unzip); err != nil {
					return nil, fmt.Errorf("read the server's compressed stream: %w", err)
				}
				w.unzip.Close() // gives its buffers back
				w.unzip = nil
			}
			w.tar = nil
		}
		a, err := w.stream.Next()
		if err != nil {
			return nil, err
		}
		if w.current = a; a.Manifest {
			break
		}
		var content io.Reader = w.stream
		if a.Extension != "" {
			_, method := compress.Split("x" + a.Extension)
			if method == compress.None {
				return nil, fmt.Errorf("the server sends an archive that is compressed in an unknown way, %.20q", a.Extension)
			}
			w.unzip = compress.Decompress(w.stream, method)
			content = w.unzip
		}
		w.tar = tar.NewReader(content)
	}
	return nil, io.EOF
}

// entry says how a member of the server's is packed. store is false for what is held back or left out.
func (w *wire) entry(h *tar.Header) (e tarpart.Entry, store bool, err error) {
	if !utf8.ValidString(h.Name) {
		w.skipped(h.Name, "its name is not UTF-8")
		return e, false, nil
	}
	name, err := tarpart.Path(h.Name)
	if err != nil {
		return e, false, err
	}
	if w.current.OID != 0 {
		name = path.Join("pg_tblspc", strconv.FormatUint(uint64(w.current.OID), 10), name)
	}
	e = tarpart.Entry{Path: name, Mode: fs.FileMode(h.Mode).Perm(), ModTime: h.ModTime, UID: h.Uid, GID: h.Gid}
	switch h.Typeflag {
	case tar.TypeReg:
	case tar.TypeDir:
		e.Type = tarpart.Dir
	case tar.TypeSymlink:
		w.skipped(name, fmt.Sprintf("a symbolic link to %q", h.Linkname))
		return e, false, nil
	default:
		return e, false, fmt.Errorf("it is of the unknown type %q", h.Typeflag)
	}
	if w.current.OID == 0 && (name == labelFile || name == mapFile) {
		return e, false, w.hold(e, h.Size)
	}
	file, partly := w.partly(name)
	e.Path = file
	kind, _, segment, why := datadir.ByName(file, e.Type == tarpart.Dir)
	switch {
	case why != "":
		return e, false, nil
	case kind == datadir.Control:
		return e, false, w.hold(e, h.Size)
	case e.Type == tarpart.Dir:
		return e, true, nil
	case kind == datadir.Relation:
		first := uint64(segment) * uint64(w.facts.RelationSegment)
		if first > math.MaxUint32 {
			return e, false, errors.New("no relation has that many files")
		}
		e.Paged, e.Verify, e.FirstBlock = w.facts.BlockSize == page.Size, w.verify, uint32(first)
	case name == "postgresql.conf":
		w.noConf = false
	}
	w.file = &passing{Reader: w.tar, sum: fileSum{path: w.hash(name)}}
	if e.Stream, e.Size = w.file, h.Size; partly {
		store, err = w.packIncrement(&e, h.Size)
		return e, store, err
	}
	return e, true, nil
}

// hold keeps a file for later.
func (w *wire) hold(e tarpart.Entry, size int64) error {
	if size > maxHeld {
		return fmt.Errorf("it has %d bytes, more than any", size)
	}
	if w.held[e.Path] != nil {
		return errors.New("it comes a second time")
	}
	e.Content = make([]byte, size)
	from := &passing{Reader: w.tar, sum: fileSum{path: w.hash(e.Path)}}
	if _, err := io.ReadFull(from, e.Content); err != nil {
		return early(err)
	}
	w.held[e.Path] = &heldMember{e, from.sum}
	return nil
}

// early makes the end of a stream an early one.
func early(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// passed takes down the checksum of the file that was handed out last, now that it was read.
func (w *wire) passed() {
	if w.file != nil && w.facts.Version >= firstManifest {
		w.sums = append(w.sums, w.file.sum)
	}
	w.file = nil
}

// stop reads where the backup ends and stores the labels.
func (w *wire) stop(ctx context.Context) (stop server.Stop, err error) {
	w.phase("stopping")
	if stop.LSN, stop.Timeline, err = w.stream.End(); err != nil {
		return stop, err
	}
	size := w.facts.SegmentSize
	stop.Segment = size.Name(stop.Timeline, size.LastSegment(stop.LSN))
	stop.Label = withoutIncremental(string(w.held[labelFile].Content))
	if m := w.held[mapFile]; m != nil {
		stop.TablespaceMap = string(m.Content)
	}
	label, err := server.ParseLabel(stop.Label)
	if err != nil {
		return stop, err
	}
	if label.LSN != w.start.LSN || label.Segment != w.start.Segment {
		return stop, fmt.Errorf("the server's label says that the backup starts at %s in %s, the server that it starts at %s in %s", label.LSN, label.Segment, w.start.LSN, w.start.Segment)
	}
	if w.start.Standby = label.Standby; stop.LSN < w.start.LSN {
		return stop, fmt.Errorf("the server says that the backup begins at %s and ends at %s", w.start.LSN, stop.LSN)
	}
	if w.zeroed > 0 {
		w.report.Delta.Notes = append(w.report.Delta.Notes, fmt.Sprintf("%d pages lie behind where their files were truncated since %s, and were not written to: they are zeros", w.zeroed, w.delta.parent.Name))
	}
	if w.stream.Corrupt() && w.report.CorruptBlocks == 0 {
		w.Logger.Warn("the server found pages whose checksum does not hold, and says above in which files; as they came they verify")
	}
	return stop, w.putLabels(ctx, stop)
}
