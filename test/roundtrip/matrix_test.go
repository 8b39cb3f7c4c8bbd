package roundtrip_test

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/pg/wal"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// A codec is a method of compression.
type codec struct {
	name, ext string
	tool      string // for the shell: decompresses standard input
	begin     []byte // how what is compressed begins; nil where that says nothing
}

var codecs = []codec{
	{"zstd", ".zst", "zstd -dc", []byte{0x28, 0xb5, 0x2f, 0xfd}},
	{"lz4", ".lz4", "lz4 -dc", []byte{0x04, 0x22, 0x4d, 0x18}},
	{"brotli", ".br", "brotli -dc", nil},
	{"lzma", ".lzma", "xz --format=lzma -dc", []byte{0x5d, 0x00, 0x00}},
	{"none", "", "cat", nil},
}

// What is archived with any method of compression and any kind of keys lies as WAL-G lays it out; the stock tools make of it the very files
// of the data directory, and so does a restore.
func TestMatrix(t *testing.T) {
	p := pgtest.Require(t, 15)
	for _, c := range codecs {
		pgtest.Program(t, strings.Fields(c.tool)[0])
	}
	dir := pgtest.Dir(t)
	current := filepath.Join(dir, "current.yaml") // where archive_command finds the archive of the moment
	use := func(content string) {
		write(t, current+".new", content)
		if err := os.Rename(current+".new", current); err != nil {
			t.Fatal(err)
		}
	}
	use("WALG_FILE_PREFIX: " + filepath.Join(dir, "none yet") + "\n")
	binary := pgtest.Build(t, "holdfast/cmd/holdfast")
	s := site.In(t, p, pgtest.Options{Checksums: true, SegmentSize: 1 << 20, Settings: map[string]string{
		"archive_command": binary + ` --config ` + current + ` wal-push "%p"`, "autovacuum": "off", "bgwriter_lru_maxpages": "0", "wal_keep_size": "1GB",
	}}, "")
	space := filepath.Join(s.Dir, "space")
	if err := os.Mkdir(space, 0o700); err != nil {
		t.Fatal(err)
	}
	pgtest.Give(t, space)
	s.Exec(t, `create tablespace space location '`+space+`'`,
		`create table t tablespace space as select g as id, md5(g::text) as what from generate_series(1, 30000) g`,
		`create unlogged table passing as select 1 as n`, `create table keepsake (n int)`,
		`vacuum (freeze)`) // so that nobody who looks at rows changes their pages

	unlogged := regexp.MustCompile(`^` + s.Value(t, `pg_relation_filepath('passing')`) + `(_fsm|_vm)?$`)
	for _, l := range locks(t) {
		for _, c := range codecs {
			t.Run(l.name+"/"+c.name, func(t *testing.T) {
				root := filepath.Join(pgtest.Dir(t), "archive")
				if err := os.Mkdir(root, 0o700); err != nil {
					t.Fatal(err)
				}
				pgtest.Give(t, root)
				config := func(keys []string) string {
					lines := append([]string{"WALG_FILE_PREFIX=" + root, "WALG_COMPRESSION_METHOD=" + c.name, "WALG_TAR_SIZE_THRESHOLD=4000000"}, keys...)
					return strings.ReplaceAll(strings.Join(lines, "\n"), "=", ": ") + "\n"
				}
				use(config(l.write))
				reader := filepath.Join(pgtest.Dir(t), "reader.yaml")
				write(t, reader, config(l.read))
				from := *s
				from.Root = root
				from.Env = []string{"WALG_CONFIG_PATH=" + reader}

				begun := time.Now()
				name := from.Push(t, "--config", current)
				pushed := time.Since(begun)
				last := from.Value(t, `pg_walfile_name(pg_switch_wal())`)
				from.Await(t, last)

				unpack := stock(t, c, l)
				unpacked := pgtest.Dir(t)
				checkLayout(t, &from, name, c, l, unpack, unpacked)
				stored := tree(t, unpacked)
				compare(t, "the data directory", tree(t, s.Data), "the parts", stored, inNoPart, unlogged)
				checkWAL(t, &from, last, c, l, unpack)

				begun = time.Now()
				fetched := from.Fetch(t, name, "--tablespace-mapping", space+"="+filepath.Join(pgtest.Dir(t), "space"))
				compare(t, "the parts", stored, "the restored directory", tree(t, fetched), madeByRestore)
				t.Logf("backup-push took %.1f s, backup-fetch %.1f s", pushed.Seconds(), time.Since(begun).Seconds())
			})
		}
	}
}

// stock returns a function that makes a plain file of an object, with the stock tools only.
func stock(t *testing.T, c codec, l lock) func(t *testing.T, object string) (plain string) {
	dir := pgtest.Dir(t)
	return func(t *testing.T, object string) string {
		t.Helper()
		tool := c.tool
		if filepath.Base(object) == "manifest.json.zst" {
			tool = "zstd -dc"
		} else if filepath.Ext(object) == ".crc32c" {
			tool = "cat"
		}
		plain := filepath.Join(dir, "plain")
		cmd := exec.Command("bash", "-o", "pipefail", "-c", l.tool+` < "$1" | `+tool+` > "$2"`, "bash", object, plain)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s | %s of %s: %v\n%s", l.tool, tool, object, err, out)
		}
		return plain
	}
}

// checkLayout looks at a backup as docs/format.md, and WAL-G, have it: which objects there are, what is encrypted of them, and what they
// say. The content of the parts goes to the directory unpacked.
func checkLayout(t *testing.T, s *site.Site, name string, c codec, l lock, unpack func(*testing.T, string) string, unpacked string) {
	t.Helper()
	base := filepath.Join(s.Root, "basebackups_005")
	sentinelFile := filepath.Join(base, name+"_backup_stop_sentinel.json")
	own := filepath.Join(base, name)

	// Which objects.
	var parts []string
	for n := 1; s.Has(fmt.Sprintf("basebackups_005/%s/tar_partitions/part_%03d.tar%s", name, n, c.ext)); n++ {
		parts = append(parts, fmt.Sprintf("part_%03d.tar%s", n, c.ext))
	}
	if len(parts) < 4 {
		t.Errorf("only %d parts", len(parts))
	}
	data := len(parts)
	parts = append(parts, "pg_control.tar"+c.ext, "backup_label.tar"+c.ext)
	want := []string{"basebackups_005/" + name + "_backup_stop_sentinel.json", "holdfast/cluster.json"}
	for _, object := range []string{"files_metadata.json", "manifest.json.zst", "metadata.json", "objects.json"} {
		want = append(want, "basebackups_005/"+name+"/"+object)
	}
	for _, part := range parts {
		want = append(want, "basebackups_005/"+name+"/tar_partitions/"+part)
	}
	slices.Sort(want)
	got := slices.DeleteFunc(s.Objects(t), func(object string) bool {
		return walObject(c).MatchString(object) || path.Dir(object) == "basebackups_005/"+name+"/page_sums"
	})
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("there are\n%s\nwanted\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}

	// What they say.
	sentinel, metadata := document(t, sentinelFile), document(t, filepath.Join(own, "metadata.json"))
	var list struct {
		Files map[string]struct {
			IsIncremented, IsSkipped *bool
			MTime                    time.Time
			UpdatesCount             *uint64
		}
		TarFileSets map[string][]string
	}
	b, err := os.ReadFile(filepath.Join(own, "files_metadata.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &list); err != nil {
		t.Fatalf("files_metadata.json: %v", err)
	}
	var plainSize, storedSize, labels int64
	for i, part := range parts {
		object := filepath.Join(own, "tar_partitions", part)
		checkLocked(t, object, c.begin, l)
		info, err := os.Stat(object)
		if err != nil {
			t.Fatal(err)
		}
		if storedSize += info.Size(); info.ModTime().After(modTime(t, sentinelFile)) {
			t.Errorf("%s is younger than the sentinel", part)
		}
		members := untar(t, unpack(t, object), unpacked)
		var names []string
		for _, h := range members {
			names = append(names, h.Name)
			plainSize += h.Size
			if h.Format != tar.FormatUSTAR && h.Format != tar.FormatPAX {
				t.Errorf("%s of %s is in the format %s", h.Name, part, h.Format)
			}
			f, listed := list.Files[h.Name]
			switch {
			case i >= data: // control file and labels
				if listed {
					t.Errorf("files_metadata.json lists %s", h.Name)
				}
				continue
			case !strings.HasPrefix(h.Name, "/") || h.Name != "/" && strings.HasSuffix(h.Name, "/") || h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeDir:
				t.Errorf("%s has a member %q of type %c", part, h.Name, h.Typeflag)
			case !listed:
				t.Errorf("files_metadata.json lacks %s, which WAL-G would not restore", h.Name)
			case f.IsIncremented == nil || *f.IsIncremented || f.IsSkipped == nil || *f.IsSkipped || f.UpdatesCount == nil:
				t.Errorf("files_metadata.json says of %s: %+v", h.Name, f)
			}
			if on, err := os.Lstat(filepath.Join(s.Data, h.Name)); h.Typeflag == tar.TypeReg && (err != nil || !on.ModTime().Equal(f.MTime)) {
				t.Errorf("files_metadata.json has the time %s of %s, and %v", f.MTime, h.Name, err)
			}
			delete(list.Files, h.Name)
		}
		if listed := list.TarFileSets[part]; !slices.Equal(sorted(listed), sorted(names)) {
			t.Errorf("files_metadata.json has %d members of %s, which has %d", len(listed), part, len(names))
		}
		switch part {
		case "pg_control.tar" + c.ext:
			if !slices.Equal(names, []string{"/global/pg_control"}) {
				t.Errorf("%s has %q", part, names)
			}
		case "backup_label.tar" + c.ext:
			if !slices.Equal(names, []string{"backup_label", "tablespace_map"}) || members[0].Mode != 0o600 || members[1].Mode != 0o600 {
				t.Errorf("%s has %q", part, names)
			}
			for _, h := range members {
				labels += h.Size
			}
		}
	}
	for left := range list.Files {
		t.Errorf("files_metadata.json lists %s, which is in no part", left)
	}
	if len(list.TarFileSets) != len(parts) {
		t.Errorf("files_metadata.json has %d parts of %d", len(list.TarFileSets), len(parts))
	}

	oid := s.Value(t, `select oid from pg_tablespace where spcname = 'space'`)
	location := s.Value(t, `pg_tablespace_location(`+oid+`)`)
	lsn := func(v any) wal.LSN {
		n, err := v.(json.Number).Int64()
		if err != nil {
			t.Error(err)
		}
		return wal.LSN(n)
	}
	start, finish := lsn(sentinel["LSN"]), lsn(sentinel["FinishLSN"])
	if !strings.HasPrefix(name, "base_00000001") || finish <= start || s.Value(t, `pg_walfile_name($1::pg_lsn)`, start.String()) != name[len("base_"):] {
		t.Errorf("%s goes from %s to %s", name, start, finish)
	}
	for key, value := range map[string]any{
		"PgVersion": s.Value(t, `current_setting('server_version_num')`), "SystemIdentifier": s.Value(t, `select system_identifier from pg_control_system()`),
		"UncompressedSize": fmt.Sprint(plainSize), "CompressedSize": fmt.Sprint(storedSize),
		"Spec":    map[string]any{"base_prefix": s.Data, "tablespaces": []any{oid}, oid: map[string]any{"loc": location, "link": "pg_tblspc/" + oid}},
		"Version": "2", "ChkpNum": nil, "DateFmt": "%Y-%m-%dT%H:%M:%S.%fZ", "DataDir": s.Data, "IsPermanent": false,
	} {
		if got, ok := sentinel[key]; !ok || printed(got) != printed(value) {
			t.Errorf("the sentinel has %s = %s, want %s", key, printed(got), printed(value))
		}
	}
	for _, key := range []string{"DeltaLSN", "DeltaFrom", "DeltaFullName", "DeltaCount", "FilesMetadataDisabled", "Files", "TarFileSets"} {
		if got, ok := sentinel[key]; ok {
			t.Errorf("the sentinel has %s = %s", key, printed(got))
		}
	}
	for theirs, ours := range map[string]string{
		"start_time": "StartTime", "finish_time": "FinishTime", "date_fmt": "DateFmt", "hostname": "Hostname", "data_dir": "DataDir",
		"pg_version": "PgVersion", "start_lsn": "LSN", "finish_lsn": "FinishLSN", "is_permanent": "IsPermanent", "system_identifier": "SystemIdentifier",
		"uncompressed_size": "UncompressedSize", "compressed_size": "CompressedSize",
	} {
		if a, b := metadata[theirs], sentinel[ours]; a == nil || printed(a) != printed(b) {
			t.Errorf("metadata.json has %s = %s, the sentinel %s = %s", theirs, printed(a), ours, printed(b))
		}
	}
	for _, key := range []string{"StartTime", "FinishTime"} {
		if at, err := time.Parse(time.RFC3339Nano, fmt.Sprint(sentinel[key])); err != nil || at.Location() != time.UTC || time.Since(at).Abs() > time.Hour {
			t.Errorf("the sentinel has %s = %v: %v", key, sentinel[key], err)
		}
	}
	if size, err := sentinel["DataCatalogSize"].(json.Number).Int64(); err != nil || size != plainSize-labels {
		t.Errorf("the sentinel has DataCatalogSize = %v, and the parts hold %d bytes without the labels", sentinel["DataCatalogSize"], plainSize-labels)
	}

	manifest := filepath.Join(own, "manifest.json.zst")
	checkLocked(t, manifest, codecs[0].begin, l)
	lines, err := os.ReadFile(unpack(t, manifest))
	if err != nil {
		t.Fatal(err)
	}
	sums := map[string]bool{}
	for line := range bytes.Lines(lines) {
		var doc struct {
			Part    string
			Members []struct {
				Path  string
				Pages int64
			}
		}
		if err := json.Unmarshal(line, &doc); err != nil {
			t.Errorf("the manifest has the line %.100q: %v", line, err)
		}
		var want []byte
		for _, m := range doc.Members {
			if m.Pages > 0 {
				want = append(want, pageSums(t, filepath.Join(unpacked, m.Path), m.Pages)...)
			}
		}
		if want == nil {
			continue
		}
		object := filepath.Join(own, "page_sums", strings.TrimSuffix(doc.Part, c.ext)+".crc32c")
		sums[filepath.Base(object)] = true
		checkLocked(t, object, nil, l)
		if got, err := os.ReadFile(unpack(t, object)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s has %d bytes, which are not the %d of the sums of the pages: %v", object, len(got), len(want), err)
		}
	}
	if there, err := os.ReadDir(filepath.Join(own, "page_sums")); err != nil || len(there) != len(sums) || len(sums) == 0 {
		t.Errorf("there are %d objects with sums of pages, want %d: %v", len(there), len(sums), err)
	}
	if n := bytes.Count(lines, []byte("\n")); n != len(parts)+1 {
		t.Errorf("the manifest has %d lines for %d parts", n, len(parts))
	}
}

// pageSums returns the CRC-32C of each of the pages of a file.
func pageSums(t *testing.T, file string, pages int64) (sums []byte) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil || int64(len(b)) != pages*8192 {
		t.Fatalf("%s has %d bytes, want %d pages: %v", file, len(b), pages, err)
	}
	for page := range slices.Chunk(b, 8192) {
		sums = binary.LittleEndian.AppendUint32(sums, crc32.Checksum(page, crc32.MakeTable(crc32.Castagnoli)))
	}
	return sums
}

// walObject matches the names of what wal_005 may hold.
func walObject(c codec) *regexp.Regexp {
	return regexp.MustCompile(`^wal_005/[0-9A-F]{24}(\.[0-9A-F]{8}\.backup)?` + `(` + regexp.QuoteMeta(c.ext) + `|\.sum\.json)$`)
}

// checkWAL looks at the archived segments: the stock tools make of each what PostgreSQL wrote, and so does wal-fetch of the last. Beside each
// is a note where who wrote cannot read.
func checkWAL(t *testing.T, s *site.Site, last string, c codec, l lock, unpack func(*testing.T, string) string) {
	t.Helper()
	found, notes := 0, 0
	for _, object := range s.Objects(t) {
		name, ok := strings.CutPrefix(object, "wal_005/")
		if _, note := strings.CutSuffix(name, ".sum.json"); note {
			notes++
		} else if ok {
			found++
			checkLocked(t, filepath.Join(s.Root, object), c.begin, l)
			same(t, unpack(t, filepath.Join(s.Root, object)), filepath.Join(s.Data, "pg_wal", strings.TrimSuffix(name, c.ext)))
		}
	}
	if blind := !slices.Equal(l.write, l.read); blind && notes != found || !blind && notes != 0 {
		t.Errorf("%d notes of %d files of WAL", notes, found)
	}
	if found < 2 {
		t.Errorf("only %d files of WAL", found)
	}
	dest := filepath.Join(pgtest.Dir(t), "RECOVERYXLOG")
	s.OK(t, "wal-fetch", last, dest)
	same(t, dest, filepath.Join(s.Data, "pg_wal", last))
}

// same compares files.
func same(t *testing.T, got, want string) {
	t.Helper()
	a, err1 := os.ReadFile(got)
	b, err2 := os.ReadFile(want)
	if err := errors.Join(err1, err2); err != nil || !bytes.Equal(a, b) {
		t.Errorf("%s differs from %s: %v", got, want, err)
	}
}

// checkLocked looks at how an object begins: what is encrypted like that, what is not like what it is compressed with.
func checkLocked(t *testing.T, object string, begin []byte, l lock) {
	t.Helper()
	f, err := os.Open(object)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	head := make([]byte, 64)
	if _, err := io.ReadFull(f, head); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatal(err)
	}
	if l.name == unlocked.name {
		if !bytes.HasPrefix(head, begin) {
			t.Errorf("%s begins with % x", object, head[:8])
		}
		return
	}
	if !bytes.HasPrefix(head, l.begin) || begin != nil && bytes.HasPrefix(head, begin) || bytes.Contains(head, []byte("PG_VERSION")) {
		t.Errorf("%s is not encrypted: it begins with % x", object, head[:8])
	}
}

// untar has tar unpack a part below dir, and returns its members. Nothing but zeros may be behind them.
func untar(t *testing.T, part, dir string) (members []*tar.Header) {
	t.Helper()
	if out, err := exec.Command("tar", "-xpf", part, "-C", dir).CombinedOutput(); err != nil && !bytes.Contains(out, []byte("Removing leading")) {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	f, err := os.Open(part)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := tar.NewReader(f)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		members = append(members, h)
	}
	rest, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.ContainsFunc(rest, func(r rune) bool { return r != 0 }) {
		t.Errorf("behind the end of %s there is something", part)
	}
	return members
}

// document reads a JSON document, which must be in clear.
func document(t *testing.T, file string) (doc map[string]any) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(&doc); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return doc
}

// printed returns a value of a document as text that can be compared.
func printed(v any) string { return fmt.Sprint(v) }

func sorted(names []string) []string {
	names = slices.Clone(names)
	slices.Sort(names)
	return names
}

func modTime(t *testing.T, file string) time.Time {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return info.ModTime()
}

// inNoPart matches what is in the data directory of a running server and in no part, or not as it was.
var inNoPart = regexp.MustCompile(`^(postmaster\.pid|postmaster\.opts|global/pg_control|backup_label|tablespace_map|(pg_wal|pg_subtrans|pg_notify)/.*|` +
	`.*/pg_internal\.init|pg_tblspc/\d+)$`)

// madeByRestore matches what a restore adds or makes anew.
var madeByRestore = regexp.MustCompile(`^(backup_manifest|tablespace_map|pg_tblspc/\d+)$`)

// compare compares trees, but for what is to be left out and for directories that are in b only.
func compare(t *testing.T, what string, a map[string]string, with string, b map[string]string, leave ...*regexp.Regexp) {
	t.Helper()
	left := func(path string) bool {
		return slices.ContainsFunc(leave, func(r *regexp.Regexp) bool { return r.MatchString(path) })
	}
	if len(a) < 900 || len(b) < 900 {
		t.Errorf("%d files and directories in %s, %d in %s", len(a), what, len(b), with)
	}
	for path, in := range a {
		if other, ok := b[path]; !ok && !left(path) {
			t.Errorf("%s is in %s, and not in %s", path, what, with)
		} else if other != in && !left(path) {
			t.Errorf("%s: %s in %s, %s in %s", path, in, what, other, with)
		}
	}
	for path, in := range b {
		if _, ok := a[path]; !ok && !left(path) && !strings.HasSuffix(in, "directory") {
			t.Errorf("%s is in %s, and not in %s", path, with, what)
		}
	}
}

var seed = maphash.MakeSeed()

// tree says of each file below dir, tablespaces included, its mode, time of change and content, by its path.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	var walk func(at, name string)
	walk = func(at, name string) {
		info, err := os.Stat(at) // through the links of tablespaces
		if err != nil {
			t.Fatal(err)
		}
		if !info.IsDir() {
			content, err := os.ReadFile(at)
			if err != nil {
				t.Fatal(err)
			}
			// A USTAR header holds whole seconds, to which times are rounded. What is written last has the time of the restore.
			found[name] = fmt.Sprintf("%s, %d bytes, sum %x", info.Mode(), len(content), maphash.Bytes(seed, content))
			if name != "backup_label" && name != "global/pg_control" {
				found[name] += fmt.Sprintf(", of %d", info.ModTime().Round(time.Second).Unix())
			}
			return
		}
		if name != "." {
			found[name] = info.Mode().Perm().String() + " directory"
		}
		entries, err := os.ReadDir(at)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Type()&^(fs.ModeDir|fs.ModeSymlink) != 0 {
				t.Errorf("%s/%s is a %s", name, e.Name(), e.Type())
				continue
			}
			walk(filepath.Join(at, e.Name()), filepath.Join(name, e.Name()))
		}
	}
	walk(dir, ".")
	return found
}
