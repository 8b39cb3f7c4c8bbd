package merge_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/compress"
	"holdfast/internal/increment"
	"holdfast/internal/merge"
	"holdfast/internal/pg/control"
	"holdfast/internal/pg/manifest"
	"holdfast/internal/pg/page"
	"holdfast/internal/pg/wal"
	"holdfast/internal/restore"
	"holdfast/internal/store"
	"holdfast/internal/tarpart"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// controlFile is a pg_control of PostgreSQL 15.
var controlFile = func() []byte {
	for _, name := range must(filepath.Glob("../pg/control/testdata/*15*")) {
		b := must(os.ReadFile(name))
		if _, err := control.Decode(b); err == nil {
			return append(b, make([]byte, control.Size-len(b))...)
		}
	}
	panic("no pg_control of PostgreSQL 15 in testdata")
}()

// node is a file or directory as it is at one moment.
type node struct {
	dir     bool
	link    string
	mode    fs.FileMode
	content []byte
	modTime time.Time
	inode   uint64
	corrupt []uint32
}

// cluster is a data directory that changes at random, and its backups.
type cluster struct {
	random  *rand.Rand
	store   store.Store
	options archive.Options
	perPart int
	noSums  bool
	tidy    bool // a delta has what changed, and no more
	now     map[string]*node
	was     map[string]*node // at the last backup
	n       int
	names   []string
	clock   time.Time
	sizes   []int                      // pages that files have
	bad     map[string]map[uint32]bool // blocks that were corrupt when they were stored
}

func newCluster(seed uint64, s store.Store) *cluster {
	c := &cluster{random: rand.New(rand.NewPCG(seed, 1)), store: s, perPart: 3, now: map[string]*node{}, bad: map[string]map[uint32]bool{}, clock: time.Unix(1_700_000_000, 0), sizes: []int{0, 1, 2, 3, 5, 8, 70}}
	for _, dir := range []string{".", "base", "base/5", "base/6", "global", "pg_xact", "pg_wal", "pg_wal/archive_status"} {
		c.now[dir] = &node{dir: true, mode: 0o700, modTime: c.tick()}
	}
	return c
}

// tick is the next moment. Some are less than a second apart.
func (c *cluster) tick() time.Time {
	c.clock = c.clock.Add(time.Duration(c.random.Int64N(3e9)))
	return c.clock
}

// paths are those that files may have.
var paths = []string{"base/5/1", "base/5/1.1", "base/5/2", "base/5/2_fsm", "base/5/3", "base/5/4", "base/6/1", "base/6/7", "global/9", "pg_xact/0000", "PG_VERSION", "postgresql.conf"}

func paged(path string) bool { return strings.HasPrefix(path, "base/") }

func (c *cluster) newPage(path string, block int) []byte {
	p := make([]byte, page.Size)
	if c.random.IntN(8) == 0 {
		return p
	}
	for i := 24; i < 400; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], c.random.Uint64())
	}
	copy(p[500:], fmt.Sprintf("%s block %d of backup %d", path, block, c.n))
	p[page.Size-1] = 1
	return p
}

func (c *cluster) create(path string) {
	n := &node{mode: []fs.FileMode{0o600, 0o640}[c.random.IntN(2)], modTime: c.tick(), inode: c.random.Uint64()}
	if paged(path) {
		for i := range c.sizes[c.random.IntN(len(c.sizes))] {
			n.content = append(n.content, c.newPage(path, i)...)
		}
	} else {
		n.content = fmt.Appendf(nil, "plain %d %s", c.random.Uint64(), strings.Repeat("x", c.random.IntN(3000)))
	}
	c.now[path] = n
}

// change changes some of the files.
func (c *cluster) change() {
	for range c.random.IntN(12) {
		path := paths[c.random.IntN(len(paths))]
		n := c.now[path]
		switch {
		case n == nil || c.random.IntN(12) == 0:
			c.create(path)
			continue
		case c.random.IntN(15) == 0:
			delete(c.now, path)
			continue
		}
		n = &node{mode: n.mode, content: slices.Clone(n.content), modTime: c.tick(), inode: n.inode}
		c.now[path] = n
		pages := len(n.content) / page.Size
		switch what := c.random.IntN(6); {
		case !paged(path):
			n.content = append(n.content, "more"...)
		case what == 0:
			for range []int{1, 2, 40}[c.random.IntN(3)] {
				n.content = append(n.content, c.newPage(path, len(n.content)/page.Size)...)
			}
		case what == 1:
			n.content = n.content[:c.random.IntN(pages+1)*page.Size]
		case what == 2:
			n.mode ^= 0o040
		case pages > 0:
			from := c.random.IntN(pages)
			for i := from; i < min(pages, from+1+c.random.IntN(6)); i++ {
				copy(n.content[i*page.Size:], c.newPage(path, i))
				if c.random.IntN(10) == 0 {
					n.corrupt = append(n.corrupt, uint32(i))
				}
			}
		}
	}
	if c.random.IntN(4) == 0 {
		c.now["base/6"] = &node{dir: true, mode: 0o700 | fs.FileMode(c.random.IntN(2))*0o050, modTime: c.tick()}
	}
	if c.random.IntN(4) == 0 {
		c.now["extra"] = &node{link: fmt.Sprintf("/elsewhere/%d", c.random.IntN(2)), mode: 0o777, modTime: c.tick()}
	}
}

// entry says how a backup has a path: nil stands for what is unchanged.
func (c *cluster) entry(path string, delta bool) *tarpart.Entry {
	n, old := c.now[path], c.was[path]
	bad := c.bad[path]
	noted := func(stored func(uint32) bool) {
		maps.DeleteFunc(bad, func(i uint32, _ bool) bool { return stored(i) || int(i) >= len(n.content)/page.Size })
		for _, i := range n.corrupt {
			bad[i] = true
		}
	}
	if bad == nil {
		bad = map[uint32]bool{}
		c.bad[path] = bad
	}
	e := &tarpart.Entry{Path: path, Mode: n.mode, ModTime: n.modTime, UID: 26, GID: 27, Content: n.content}
	switch {
	case n.dir:
		e.Type = tarpart.Dir
		return e
	case n.link != "":
		e.Type, e.Link = tarpart.Symlink, n.link
		return e
	}
	whole := func(uint32) bool { return true }
	e.Paged = paged(path) && len(n.content) > 0
	if !delta || old == nil {
		noted(whole)
		return e
	}
	if old.mode == n.mode && bytes.Equal(old.content, n.content) && len(n.corrupt) == 0 && (c.tidy || c.random.IntN(8) > 0) {
		return nil
	}
	if !e.Paged || !c.tidy && c.random.IntN(8) == 0 {
		noted(whole)
		return e
	}
	h := &increment.Header{FileSize: int64(len(n.content))}
	var pages []byte
	for i := range len(n.content) / page.Size {
		p := n.content[i*page.Size:][:page.Size]
		grown := (i+1)*page.Size > len(old.content)
		zeros := bytes.Equal(p, make([]byte, page.Size))
		changed := grown && !(zeros && c.random.IntN(2) == 0) || !grown && !bytes.Equal(p, old.content[i*page.Size:][:page.Size])
		if changed || slices.Contains(n.corrupt, uint32(i)) || !c.tidy && c.random.IntN(10) == 0 {
			h.Blocks = append(h.Blocks, uint32(i))
			pages = append(pages, p...)
		}
	}
	e.Increment, e.Stream, e.Content = h, bytes.NewReader(pages), nil
	noted(func(i uint32) bool { return slices.Contains(h.Blocks, i) })
	return e
}

func (c *cluster) archive() *archive.Archive { return archive.New(c.store, c.options) }

// backup takes one: a delta on the last one, or a full one.
func (c *cluster) backup(delta bool) string {
	const size = wal.SegmentSize(16 << 20)
	ctx, a := context.Background(), c.archive()
	start := wal.LSN(c.n+1)<<25 | 0x28
	finish := start + 0xD8
	system := must(control.Decode(controlFile)).SystemIdentifier
	at := time.Date(2026, 5, 6, 7, c.n, 0, 0, time.UTC)
	s := &archive.Sentinel{LSN: &start, FinishLSN: &finish, PgVersion: 150004, SystemIdentifier: &system, SegmentSize: uint64(size), StartTime: at,
		FinishTime: at.Add(time.Second), Hostname: "here", DataDir: "/data", UserData: []byte(fmt.Sprintf(`{"n":%d}`, c.n)), Tool: "test"}
	name := archive.BackupName(size.Name(1, size.Segment(start)))
	if delta {
		parent := c.names[len(c.names)-1]
		name = archive.DeltaName(size.Name(1, size.Segment(start)), parent)
		read := must(a.Sentinel(ctx, parent))
		s.DeltaFrom, s.DeltaLSN, s.DeltaFullName, s.DeltaCount, s.Parent, s.DeltaSource = parent, read.LSN, c.names[0], read.DeltaCount+1, read.Sum, "summaries"
	}
	d := must(a.Begin(ctx, name, "here"))
	put := func(base string, entries []tarpart.Entry) {
		p := tarpart.NewPacker(list(entries...), tarpart.Options{})
		err := d.PutPart(ctx, base, p, func() []tarpart.Member {
			all := p.Members()
			for i := range all {
				m := &all[i]
				if n := c.now[m.Path]; n != nil && m.Type == tarpart.File {
					m.Inode, m.Changed, m.Corrupt, m.CorruptCount = n.inode, n.modTime, n.corrupt, len(n.corrupt)
				}
			}
			return all
		})
		if err == nil && !c.noSums {
			err = d.PutSums(ctx, base, p.Sums())
		}
		if err != nil {
			panic(err)
		}
	}
	var entries []tarpart.Entry
	all := slices.Sorted(maps.Keys(c.now))
	c.random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for _, path := range all {
		if e := c.entry(path, delta); e != nil {
			entries = append(entries, *e)
			continue
		}
		n := c.now[path]
		if err := d.Unchanged(tarpart.Member{Path: path, Mode: uint32(n.mode), Size: int64(len(n.content)), ModTime: n.modTime, Inode: n.inode, Changed: n.modTime}); err != nil {
			panic(err)
		}
	}
	for part := range slices.Chunk(entries, c.perPart) {
		put(d.NextPart(), part)
	}
	put(archive.ControlPart, []tarpart.Entry{{Path: control.Name, Mode: 0o600, ModTime: at, Content: controlFile}})
	label := fmt.Sprintf("START WAL LOCATION: %s (file x)\n", start)
	put(archive.LabelPart, []tarpart.Entry{{Path: "backup_label", Mode: 0o600, ModTime: time.Unix(0, 0), Content: []byte(label), Bare: true}})
	if err := d.PutConfig(ctx, tarpart.NewPacker(list(tarpart.Entry{Path: "etc/postgresql.conf", Mode: 0o600, ModTime: at, Content: []byte(name), Bare: true}), tarpart.Options{})); err != nil {
		panic(err)
	}
	if err := d.Commit(ctx, s); err != nil {
		panic(err)
	}
	c.n++
	c.names = append(c.names, name)
	c.was = maps.Clone(c.now)
	for path, n := range c.now { // what was corrupt then is told once
		if n.corrupt != nil {
			again := *n
			again.corrupt = nil
			c.now[path] = &again
		}
	}
	return name
}

func list(es ...tarpart.Entry) func() (tarpart.Entry, error) {
	return func() (tarpart.Entry, error) {
		if len(es) == 0 {
			return tarpart.Entry{}, io.EOF
		}
		e := es[0]
		es = es[1:]
		return e, nil
	}
}

// last is the name of the newest backup.
func (c *cluster) last() string { return c.names[len(c.names)-1] }

// merge merges a backup.
func merged(s store.Store, o archive.Options, name string, opts merge.Options) (*merge.Plan, *merge.Report, error) {
	ctx := context.Background()
	a := archive.New(s, o)
	c, err := catalog.Load(ctx, a)
	if err != nil {
		return nil, nil, err
	}
	p, err := merge.Decide(ctx, a, c, name)
	if err != nil {
		return nil, nil, err
	}
	opts.Host = "here"
	r, err := merge.Run(ctx, a, p, opts)
	return p, r, err
}

// restored restores a backup and says what came of it: of each path mode, time and content; of backup_manifest, whose order is that of the workers, what
// it says of each file.
func restored(t testing.TB, s store.Store, o archive.Options, name string) map[string]string {
	t.Helper()
	ctx, a := context.Background(), archive.New(s, o)
	dir := must(os.MkdirTemp("", "merge-test-"))
	defer os.RemoveAll(dir)
	data := filepath.Join(dir, "data")
	c := must(catalog.Load(ctx, a))
	choice := must(c.Choose(name, catalog.Target{}))
	p, err := restore.Decide(ctx, a, restore.Request{Destination: data, Choice: choice, ConfigDir: filepath.Join(dir, "config")})
	if err != nil {
		t.Fatalf("restore %s: %v", name, err)
	}
	r, err := restore.Run(ctx, a, p, restore.Options{Workers: 2})
	if err != nil {
		t.Fatalf("restore %s: %v", name, err)
	}
	if !r.Verified {
		t.Errorf("restore %s: not verified", name)
	}
	found := map[string]string{}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, info := must(filepath.Rel(dir, path)), must(d.Info())
		switch {
		case d.IsDir():
			found[rel] = info.Mode().String()
		case d.Type()&fs.ModeSymlink != 0:
			found[rel] = "link " + must(os.Readlink(path))
		case rel == "data/"+manifest.Name:
			list := must(manifest.NewReader(bytes.NewReader(must(os.ReadFile(path)))))
			for {
				f, err := list.Next()
				if err == io.EOF {
					break
				}
				if err != nil {
					return err
				}
				found["listed "+f.Path] = fmt.Sprintf("%d %x %s", f.Size, f.Checksum, f.Modified)
			}
		case rel == "data/"+control.Name || rel == "data/backup_label" || strings.HasPrefix(rel, "config/"): // made by the restore
			found[rel] = fmt.Sprintf("%s %s", info.Mode(), must(os.ReadFile(path)))
		default:
			found[rel] = fmt.Sprintf("%s %s %s", info.Mode(), info.ModTime().UTC(), must(os.ReadFile(path)))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// same compares what two restores gave.
func same(t testing.TB, what string, got, want map[string]string) {
	t.Helper()
	for path, w := range want {
		if g, ok := got[path]; !ok || g != w {
			t.Errorf("%s: %s is %.120q, want %.120q, %d and %d bytes", what, path, g, w, len(g), len(w))
		}
	}
	for path := range got {
		if _, ok := want[path]; !ok {
			t.Errorf("%s: there is a %s too", what, path)
		}
	}
}

// remove removes a backup and all that lies below its name.
func remove(s store.Store, name string) {
	ctx := context.Background()
	for o, err := range store.Walk(ctx, s, archive.BackupDir) {
		if err != nil {
			panic(err)
		}
		if strings.HasPrefix(o.Name, archive.Folder(name)) || o.Name == archive.BackupDir+name+"_backup_stop_sentinel.json" {
			if err := s.Delete(ctx, o.Name); err != nil {
				panic(err)
			}
		}
	}
}

var methods = []compress.Method{compress.Zstd, compress.Zstd, compress.LZ4, compress.None}
