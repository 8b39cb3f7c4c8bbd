package pgbackrest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
	"holdfast/internal/pgbackrest"
	"holdfast/internal/store"
)

// walOf opens the WAL of a repository's cluster.
func walOf(t testing.TB, r *repository) *archive.Archive {
	t.Helper()
	repo, err := pgbackrest.New(r.store, pgbackrest.Options{Stanza: stanza, Passphrase: r.passphrase})
	if err != nil {
		t.Fatal(err)
	}
	i, err := repo.WALInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if found := i.Of(system); len(found) != 1 || i.Of(1) != nil {
		t.Fatalf("%v", found)
	}
	return repo.WAL(i, i.Clusters[0])
}

// withWAL writes a repository with WAL on two timelines.
func withWAL(t testing.TB, s style) (*repository, map[string][]byte) {
	t.Helper()
	r := newRepository(s)
	r.add(t, "full", map[string]string{"pg_data/global/pg_control": "x"}, rand.New(rand.NewPCG(1, 1)))
	files := map[string][]byte{segment(0): walContent(0)}
	for n := 1; n < 300; n++ { // more than one directory of 256
		size := wal.SegmentSize(1 << 20)
		name := size.Name(1, wal.SegmentNo(n+4090))
		files[name] = []byte(fmt.Sprint("segment ", n))
	}
	files["000000020000000100000020"] = []byte("on the second timeline")
	files["000000010000000100000020.partial"] = []byte("half a segment")
	for name, content := range files {
		if name == segment(0) {
			continue
		}
		r.wal(t, name, content)
	}
	dir := "archive/" + stanza + "/15-1/"
	files["00000002.history"] = []byte("1\t1/2000000\tno recovery target specified\n")
	r.put(t, dir+"00000002.history", encrypt(r.secret("wal"), false, files["00000002.history"]))
	files["000000010000000000000002.00000028.backup"] = []byte("START WAL LOCATION: …")
	r.put(t, dir+"0000000100000000/000000010000000000000002.00000028.backup", encrypt(r.secret("wal"), false, files["000000010000000000000002.00000028.backup"]))
	// What is none of it.
	for _, name := range []string{"archive.info", "0000000100000000/junk", "0000000100000000/000000010000000000000002-123.gz", "notwal/000000010000000000000002", "pgbackrest.tmp"} {
		r.put(t, dir+name, []byte("junk"))
	}
	return r, files
}

// WAL of a repository is that of an archive: every file by its name, in order, from any name on, with its content.
func TestWALIsShownAsAnArchive(t *testing.T) {
	for _, s := range []style{styles[0], styles[1], styles[4]} {
		r, files := withWAL(t, s)
		a := walOf(t, r)
		var want []string
		for name := range files {
			want = append(want, archive.WALDir+name)
		}
		slices.Sort(want)
		list := func(after string) (names []string) {
			for o, err := range a.Store().List(t.Context(), archive.WALDir, after) {
				if err != nil {
					t.Fatal(err)
				}
				names = append(names, o.Name)
			}
			return names
		}
		if got := list(""); !slices.Equal(got, want) {
			t.Fatalf("listed are\n%v, want\n%v", got, want)
		}
		for _, after := range append([]string{archive.WALDir + "00000001G", archive.WALDir + "00000001000000000000000", archive.WALDir + "0000000100000000000000FF",
			archive.WALDir + "000000010000000100", archive.WALDir + "00000002.", "a", "wal_006"}, want...) {
			i, found := slices.BinarySearch(want, after)
			if found {
				i++
			}
			if got := list(after); !slices.Equal(got, want[i:]) {
				t.Errorf("behind %s are\n%v, want\n%v", after, got, want[i:])
			}
		}
		for name, content := range files {
			body, err := a.OpenWAL(t.Context(), name)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			got, err := io.ReadAll(body)
			if err = errors.Join(err, body.Close()); err != nil || string(got) != string(content) {
				t.Errorf("%s: %.50q, %v, want %.50q", name, got, err, content)
			}
			o, err := a.Store().Stat(t.Context(), archive.WALDir+name)
			if err != nil || o.Name != archive.WALDir+name {
				t.Errorf("Stat %s: %+v, %v", name, o, err)
			}
			part, err := a.Store().OpenRange(t.Context(), archive.WALDir+name, 3, 5)
			if err != nil {
				t.Fatal(err)
			}
			got, err = io.ReadAll(part)
			if err = errors.Join(err, part.Close()); err != nil || string(got) != string(content[3:8]) {
				t.Errorf("%s from 3: %q, %v", name, got, err)
			}
		}
		for _, name := range []string{"000000010000000900000001", "00000009.history", "000000010000000100000021.partial"} {
			if _, err := a.OpenWAL(t.Context(), name); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s, which there is not: %v", name, err)
			}
		}
		size := wal.SegmentSize(1 << 20)
		inventory, err := catalog.LoadWAL(t.Context(), a, size)
		if err != nil || !inventory.Has(2, size.Segment(1<<32+0x20<<20)) {
			t.Errorf("the inventory: %+v, %v", inventory, err)
		}
		all, err := catalog.Load(t.Context(), a)
		if err != nil || len(all.Histories[2]) != 1 {
			t.Errorf("the catalog: %+v, %v", all, err)
		}
		for _, err := range []error{a.Store().Put(t.Context(), archive.WALDir+segment(0), strings.NewReader("")), a.Store().Delete(t.Context(), archive.WALDir+segment(0))} {
			if !errors.Is(err, fs.ErrPermission) {
				t.Errorf("it can be written to: %v", err)
			}
		}
		if o, err := a.Owner(t.Context()); err != nil || o.SystemIdentifier != system {
			t.Errorf("it is of %+v, %v", o, err)
		}
	}
}

// One segment with two contents is nobody's guess, and nothing that is missing; twice the same is one.
func TestSegmentThatIsThereTwice(t *testing.T) {
	r, _ := withWAL(t, style{codec: "zst"})
	a := walOf(t, r)
	r.codec = "gz"
	r.wal(t, segment(0), walContent(0))
	if body, err := a.OpenWAL(t.Context(), segment(0)); err != nil {
		t.Errorf("the same in another codec: %v", err)
	} else if _, err := io.Copy(io.Discard, body); err != nil {
		t.Error(err)
	}
	r.wal(t, segment(0), []byte("other"))
	if _, err := a.OpenWAL(t.Context(), segment(0)); err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "twice") {
		t.Errorf("another content: %v", err)
	}
}

// What does not have the checksum of its name is an error at its end, and of a store that fails no segment is missing.
func TestDamagedWAL(t *testing.T) {
	r, _ := withWAL(t, style{codec: "none"})
	a := walOf(t, r)
	name := fmt.Sprintf("archive/%s/15-1/%s/%s-%x", stanza, segment(0)[:16], segment(0), sha1Of(walContent(0)))
	r.put(t, name, walContent(9))
	body, err := a.OpenWAL(t.Context(), segment(0))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, body); !errors.Is(err, pgbackrest.ErrDamaged) {
		t.Errorf("read %v", err)
	}
	repo, err := pgbackrest.New(&down{r.store}, pgbackrest.Options{Stanza: stanza})
	if err != nil {
		t.Fatal(err)
	}
	i, err := repo.WALInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{segment(0), "000000010000000900000001", "00000009.history"} {
		if _, err := repo.WAL(i, i.Clusters[0]).OpenWAL(t.Context(), name); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s of a store whose listings fail: %v", name, err)
		}
	}
}

// down is a store whose listings fail.
type down struct{ store.Store }

func (d *down) List(context.Context, string, string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) { yield(store.Object{}, errors.New("no route to host")) }
}
