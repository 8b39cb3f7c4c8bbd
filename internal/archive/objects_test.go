package archive_test

import (
	"bytes"
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"

	"holdfast/internal/archive"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

// objects.json has every object of a backup as it is stored, but for what may change; the sentinel has its sum, and a seal of its own.
func TestObjectsAreKnownAsTheyWereStored(t *testing.T) {
	ctx, m := t.Context(), &storetest.Memory{}
	if err := putBackup(ctx, m); err != nil {
		t.Fatal(err)
	}
	a := archive.New(m, archive.Options{})
	known, sum, err := a.Objects(ctx, backupName)
	if err != nil {
		t.Fatal(err)
	}
	s, err := a.Sentinel(ctx, backupName)
	if err != nil || s.Objects != sum {
		t.Errorf("the sentinel has %q, the document is %s (%v)", s.Objects, sum, err)
	}
	for o, err := range store.Walk(ctx, m, archive.Folder(backupName)) {
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(o.Name, archive.Folder(backupName))
		b, err := store.ReadFile(ctx, m, o.Name, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		want := archive.Stored{Size: int64(len(b)), Sum: archive.Sum(xxhash.Sum64(b))}
		got, ok := known[name]
		if ok == (name == "metadata.json" || name == "objects.json") || ok && got != want {
			t.Errorf("%s is known as %v, is %v", name, got, want)
		}
		delete(known, name)
	}
	if len(known) > 0 {
		t.Errorf("what is not there is known: %v", known)
	}
	for _, name := range []string{a.SentinelName(backupName), archive.Folder(backupName) + "metadata.json"} {
		b, err := store.ReadFile(ctx, m, name, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if ok, err := archive.CheckSeal(b); !ok || err != nil {
			t.Errorf("%s: sealed %v, %v", name, ok, err)
		}
		for i := range b {
			for bit := range 8 {
				damaged := bytes.Clone(b)
				damaged[i] ^= 1 << bit
				if ok, err := archive.CheckSeal(damaged); ok && err == nil {
					t.Errorf("%s: bit %d of byte %d changed, and the seal holds", name, bit, i)
				}
			}
		}
	}
	if err := a.MarkPermanent(ctx, backupName); err != nil {
		t.Fatal(err)
	}
	b, err := store.ReadFile(ctx, m, archive.Folder(backupName)+"metadata.json", 1<<20)
	if ok, errSeal := archive.CheckSeal(b); err != nil || !ok || errSeal != nil || !bytes.Contains(b, []byte(`"is_permanent":true`)) {
		t.Errorf("marked permanent: %s, sealed %v, %v, %v", b, ok, errSeal, err)
	}
	if ok, err := archive.CheckSeal([]byte(`{"LSN":1}`)); ok || err != nil {
		t.Errorf("what has no seal: %v, %v", ok, err)
	}
	if _, _, err := a.Objects(ctx, "base_000000010000000000000009"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a backup without: %v", err)
	}
}

// The list that is made of a manifest is the one that was stored with it.
func TestFileListIsThatOfTheManifest(t *testing.T) {
	ctx, m := t.Context(), &storetest.Memory{}
	if err := putBackup(ctx, m); err != nil {
		t.Fatal(err)
	}
	var made bytes.Buffer
	if err := archive.New(m, archive.Options{}).WriteFileList(ctx, backupName, &made); err != nil {
		t.Fatal(err)
	}
	stored, err := store.ReadFile(ctx, m, archive.Folder(backupName)+"files_metadata.json", 1<<20)
	if err != nil || !bytes.Equal(stored, made.Bytes()) {
		t.Errorf("stored %s\nmade %s\n%v", stored, made.Bytes(), err)
	}
}

// Whatever lies there as objects.json, it is read in bounds, and believed only with a seal that holds.
func FuzzObjects(f *testing.F) {
	m := &storetest.Memory{}
	if err := putBackup(f.Context(), m); err != nil {
		f.Fatal(err)
	}
	good, err := store.ReadFile(f.Context(), m, archive.Folder(backupName)+"objects.json", 1<<20)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"backup":"` + backupName + `","objects":{"a":{"size":-1,"xxhash64":"0"}}}`))
	f.Add(good[:len(good)-3])
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &storetest.Memory{}
		if err := m.Put(t.Context(), archive.Folder(backupName)+"objects.json", bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
		_, sum, err := archive.New(m, archive.Options{}).Objects(t.Context(), backupName)
		sealed, errSeal := archive.CheckSeal(b)
		if err == nil && (!sealed || errSeal != nil) || len(sum) != 64 {
			t.Errorf("%q is believed: sealed %v, %v, sum %q", b, sealed, errSeal, sum)
		}
	})
}
