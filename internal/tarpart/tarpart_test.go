package tarpart_test

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"holdfast/internal/pg/page"
	"holdfast/internal/tarpart"
)

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

// pages returns n pages with right checksums for blocks first and following, content drawn from seed.
func pages(seed uint64, first, n uint32) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, int(n)*page.Size)
	for i := range n {
		p := b[i*page.Size:][:page.Size]
		for j := range p {
			p[j] = byte(r.Uint32())
		}
		binary.LittleEndian.PutUint16(p[12:], 24)          // pd_lower
		binary.LittleEndian.PutUint16(p[14:], 8000)        // pd_upper: not new
		binary.LittleEndian.PutUint16(p[16:], page.Size)   // pd_special
		binary.LittleEndian.PutUint16(p[18:], page.Size|4) // pd_pagesize_version
		binary.LittleEndian.PutUint16(p[8:], page.Checksum(p, first+i))
	}
	return b
}

func write(t testing.TB, name string, content []byte) string {
	t.Helper()
	if err := os.WriteFile(name, content, 0o640); err != nil {
		t.Fatal(err)
	}
	return name
}

// Whatever sizes files have and reads ask for, Each gives back what was packed, and members say where it lies.
func TestPackedIsUnpacked(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		var es []tarpart.Entry
		var want [][]byte
		for i := range rapid.IntRange(0, 5).Draw(t, "files") {
			size := rapid.OneOf(rapid.IntRange(0, 3*page.Size), rapid.Just(64*page.Size+77), rapid.Just(512)).Draw(t, "size")
			content := pages(uint64(i), 131072, uint32(size/page.Size))
			content = append(content, bytes.Repeat([]byte{byte(i)}, size%page.Size)...)
			name := filepath.Join(dir, fmt.Sprint(i))
			if err := os.WriteFile(name, content, 0o600); err != nil {
				t.Fatal(err)
			}
			es = append(es, tarpart.Entry{Path: fmt.Sprintf("base/5/%d.1", i), Mode: 0o600, File: name, Paged: rapid.Bool().Draw(t, "paged"), Verify: rapid.Bool().Draw(t, "verify"), FirstBlock: 131072})
			want = append(want, content)
		}
		p := tarpart.NewPacker(list(es...), tarpart.Options{})
		var stream []byte
		for buf := make([]byte, 300_000); ; {
			n, err := p.Read(buf[:rapid.IntRange(1, len(buf)).Draw(t, "read")])
			stream = append(stream, buf[:n]...)
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		i := 0
		err := tarpart.Each(bytes.NewReader(stream), func(h tarpart.Header, content io.Reader) error {
			got, err := io.ReadAll(content)
			m := p.Members()[i]
			if h.Path != es[i].Path || !bytes.Equal(got, want[i]) || h.Size != m.Size || m.CorruptCount != 0 {
				t.Errorf("member %d: %+v with %d bytes, want %d bytes of %s", i, h, len(got), len(want[i]), es[i].Path)
			}
			if !bytes.Equal(stream[m.Offset:][:m.Size], want[i]) || m.CRC != crc32.Checksum(want[i], crc32.MakeTable(crc32.Castagnoli)) {
				t.Errorf("member %d: offset %d or CRC %08x is wrong", i, m.Offset, m.CRC)
			}
			i++
			return err
		})
		if err != nil || i != len(es) {
			t.Errorf("%d of %d members, %v", i, len(es), err)
		}
	})
}

// Stock tar unpacks a part to the same tree.
func TestStockTarReadsAPart(t *testing.T) {
	if _, err := exec.LookPath("tar"); err != nil {
		t.Fatal("tar is part of every system this project supports: ", err)
	}
	dir := t.TempDir()
	long := strings.Repeat("d", 120) + "/" + strings.Repeat("f", 120)
	stamp := time.Date(2024, 5, 6, 7, 8, 9, 123456789, time.UTC)
	content := write(t, filepath.Join(dir, "content"), []byte("hello"))
	if err := os.Chtimes(content, stamp, stamp); err != nil {
		t.Fatal(err)
	}
	p := tarpart.NewPacker(list(
		tarpart.Entry{Path: ".", Type: tarpart.Dir, Mode: 0o700, ModTime: stamp},
		tarpart.Entry{Path: "base", Type: tarpart.Dir, Mode: 0o750, ModTime: stamp},
		tarpart.Entry{Path: "base/1", File: content, Mode: 0o640},
		tarpart.Entry{Path: long, File: content, Mode: 0o600},
		tarpart.Entry{Path: "link", Type: tarpart.Symlink, Link: "/elsewhere", ModTime: stamp},
		tarpart.Entry{Path: "backup_label", Content: []byte("label"), Mode: 0o600, Bare: true},
	), tarpart.Options{})
	out := filepath.Join(dir, "out")
	if err := os.Mkdir(out, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("tar", "-x", "-p", "-C", out)
	cmd.Stdin = p
	if b, err := cmd.CombinedOutput(); err != nil && !strings.Contains(string(b), "Removing leading") {
		t.Fatalf("tar: %v\n%s", err, b)
	}
	for name, want := range map[string]string{"base/1": "hello", long: "hello", "backup_label": "label"} {
		if got, err := os.ReadFile(filepath.Join(out, name)); string(got) != want {
			t.Errorf("%s holds %q, %v", name, got, err)
		}
	}
	if info, err := os.Stat(filepath.Join(out, "base/1")); err != nil || info.Mode().Perm() != 0o640 || !info.ModTime().Equal(stamp.Round(time.Second)) {
		t.Errorf("base/1: %v, %v", info, err)
	}
	if to, err := os.Readlink(filepath.Join(out, "link")); to != "/elsewhere" {
		t.Errorf("link to %q, %v", to, err)
	}
	if m := p.Members()[2]; !m.ModTime.Equal(stamp) {
		t.Errorf("the member's time is %v, want the exact %v", m.ModTime, stamp)
	}
}

// A part is closed after the member that fills it; the next entry stays for the next part.
func TestPartsAreBounded(t *testing.T) {
	file := write(t, filepath.Join(t.TempDir(), "f"), make([]byte, 1000))
	var es []tarpart.Entry
	for i := range 10 {
		es = append(es, tarpart.Entry{Path: fmt.Sprint(i), File: file})
	}
	for _, c := range []struct {
		opts tarpart.Options
		want []int
	}{
		{tarpart.Options{}, []int{10}},
		{tarpart.Options{MaxContent: 2500}, []int{3, 3, 3, 1}},
		{tarpart.Options{MaxContent: 2999}, []int{3, 3, 3, 1}},
		{tarpart.Options{MaxMembers: 4}, []int{4, 4, 2}},
	} {
		next, n := list(es...), 0
		var got []int
		for n < 10 {
			p := tarpart.NewPacker(next, c.opts)
			if _, err := io.Copy(io.Discard, p); err != nil {
				t.Fatal(err)
			}
			got = append(got, len(p.Members()))
			n += len(p.Members())
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%+v: parts of %v members, want %v", c.opts, got, c.want)
		}
	}
}

// Files that vanish, shrink or grow under our hands do not break the part.
func TestFilesMayChange(t *testing.T) {
	dir := t.TempDir()
	shrinks := write(t, filepath.Join(dir, "shrinks"), bytes.Repeat([]byte("s"), 600_000))
	grows := write(t, filepath.Join(dir, "grows"), []byte("grow"))
	var vanished []string
	reads := 0
	p := tarpart.NewPacker(list(
		tarpart.Entry{Path: "gone", File: filepath.Join(dir, "gone")},
		tarpart.Entry{Path: "grows", File: grows},
		tarpart.Entry{Path: "shrinks", File: shrinks},
	), tarpart.Options{
		Vanished: func(path string) { vanished = append(vanished, path) },
		Wait: func(int) error { // after the size was taken, before the content is read
			switch reads++; reads {
			case 1:
				return os.WriteFile(grows, []byte("growmore"), 0o600)
			case 2:
				return os.Truncate(shrinks, 300_000)
			}
			return nil
		},
	})
	got := map[string]string{}
	err := tarpart.Each(p, func(h tarpart.Header, content io.Reader) error {
		b, err := io.ReadAll(content)
		got[h.Path] = string(b)
		return err
	})
	want := map[string]string{"shrinks": strings.Repeat("s", 300_000) + strings.Repeat("\x00", 300_000), "grows": "grow"}
	if err != nil || len(got) != 2 || got["shrinks"] != want["shrinks"] || got["grows"] != want["grows"] {
		t.Errorf("%v; %d members, shrinks as wanted: %v, grows is %q", err, len(got), got["shrinks"] == want["shrinks"], got["grows"])
	}
	if fmt.Sprint(vanished) != "[gone]" {
		t.Errorf("vanished: %v", vanished)
	}
}

// A page whose checksum does not hold is told with its block; one that only was being written is not.
func TestCorruptPagesAreTold(t *testing.T) {
	dir := t.TempDir()
	content := pages(1, 131072, 200)
	for _, b := range []int{3, 77, 199} {
		content[b*page.Size+5000] ^= 1
	}
	torn := 120
	whole := bytes.Clone(content)
	content[torn*page.Size+100] ^= 1
	file := write(t, filepath.Join(dir, "16384.1"), content)
	mended := false
	var told []string
	p := tarpart.NewPacker(list(tarpart.Entry{Path: "base/5/16384.1", File: file, Paged: true, Verify: true, FirstBlock: 131072}), tarpart.Options{
		Corrupt: func(path string, block uint32) { told = append(told, fmt.Sprint(path, " ", block)) },
		Wait: func(int) error {
			if !mended { // the write of the torn page ends while we look at it
				mended = true
				time.AfterFunc(15*time.Millisecond, func() { _ = os.WriteFile(file, whole, 0o600) })
			}
			return nil
		},
	})
	var got []byte
	err := tarpart.Each(p, func(_ tarpart.Header, r io.Reader) (err error) { got, err = io.ReadAll(r); return err })
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(told) != "[base/5/16384.1 3 base/5/16384.1 77 base/5/16384.1 199]" {
		t.Errorf("told: %v", told)
	}
	if m := p.Members()[0]; m.CorruptCount != 3 || !slices.Equal(m.Corrupt, []uint32{3, 77, 199}) {
		t.Errorf("recorded: %d, %v", m.CorruptCount, m.Corrupt)
	}
	if !bytes.Equal(got, whole) {
		t.Error("the torn page was stored, not what it became")
	}
}

func TestManyCorruptPagesAreCounted(t *testing.T) {
	content := pages(1, 0, 100)
	for b := range 100 {
		content[b*page.Size+5000] ^= 1
	}
	file := write(t, filepath.Join(t.TempDir(), "1"), content)
	for _, all := range []bool{false, true} {
		told := 0
		p := tarpart.NewPacker(list(tarpart.Entry{Path: "1", File: file, Paged: true, Verify: true}),
			tarpart.Options{AllCorrupt: all, Corrupt: func(string, uint32) { told++ }})
		if _, err := io.Copy(io.Discard, p); err != nil {
			t.Fatal(err)
		}
		want := 10
		if all {
			want = 100
		}
		if m := p.Members()[0]; m.CorruptCount != 100 || len(m.Corrupt) != want || told != want {
			t.Errorf("all %v: counted %d, listed %d, told %d", all, m.CorruptCount, len(m.Corrupt), told)
		}
	}
}

func TestErrorsEndThePart(t *testing.T) {
	boom := errors.New("boom")
	file := write(t, filepath.Join(t.TempDir(), "f"), make([]byte, 10))
	for name, p := range map[string]*tarpart.Packer{
		"next": tarpart.NewPacker(func() (tarpart.Entry, error) { return tarpart.Entry{}, boom }, tarpart.Options{}),
		"wait": tarpart.NewPacker(list(tarpart.Entry{Path: "f", File: file}), tarpart.Options{Wait: func(int) error { return boom }}),
	} {
		if _, err := io.Copy(io.Discard, p); !errors.Is(err, boom) {
			t.Errorf("%s: got %v", name, err)
		}
		if _, err := p.Read(make([]byte, 1)); !errors.Is(err, boom) {
			t.Errorf("%s: the error does not stay: %v", name, err)
		}
	}
}

func TestEachRefusesHostileNames(t *testing.T) {
	for _, name := range []string{"../x", "/../x", "base/../../x", "a//b", "./../x", "a/./b"} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := errors.Join(w.WriteHeader(&tar.Header{Name: name, Mode: 0o600}), w.Close()); err != nil {
			t.Fatal(err)
		}
		err := tarpart.Each(&b, func(h tarpart.Header, _ io.Reader) error {
			t.Errorf("%q came through as %q", name, h.Path)
			return nil
		})
		if err == nil {
			t.Errorf("%q is accepted", name)
		}
	}
}

func TestEachNoticesTruncationAndTrailers(t *testing.T) {
	p := tarpart.NewPacker(list(tarpart.Entry{Path: "f", Content: bytes.Repeat([]byte("x"), 1500)}), tarpart.Options{})
	whole, err := io.ReadAll(p)
	if err != nil {
		t.Fatal(err)
	}
	each := func(b []byte) error {
		return tarpart.Each(bytes.NewReader(b), func(_ tarpart.Header, r io.Reader) error { _, err := io.Copy(io.Discard, r); return err })
	}
	if err := each(whole); err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		if each(whole[:n]) == nil {
			t.Fatalf("cut to %d bytes and accepted", n)
		}
	}
	if each(append(bytes.Clone(whole), 0, 0, 1)) == nil {
		t.Error("bytes behind the end are accepted")
	}
}

// Whatever the bytes, Each ends, and names stay inside.
func FuzzEach(f *testing.F) {
	p := tarpart.NewPacker(list(tarpart.Entry{Path: "base/1", Content: []byte("x"), Mode: 0o600}, tarpart.Entry{Path: strings.Repeat("long/", 40) + "x"}), tarpart.Options{})
	whole, _ := io.ReadAll(p)
	f.Add(whole)
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = tarpart.Each(bytes.NewReader(b), func(h tarpart.Header, r io.Reader) error {
			if !fs.ValidPath(h.Path) || h.Size < 0 {
				t.Errorf("%+v came through", h)
			}
			_, err := io.Copy(io.Discard, r)
			return err
		})
	})
}
