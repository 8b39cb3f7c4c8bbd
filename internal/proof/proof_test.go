package proof_test

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/proof"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

const (
	backup = "base_000000010000000000000002"
	sum    = "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8"
)

// said is a record of that backup, written now.
func said(ok bool) map[string]any {
	return map[string]any{"at": time.Now().UTC(), "by": "a@b", "version": "1", "backup": backup, "sentinel_sha256": sum, "ok": ok, "rto_seconds": 2.5}
}

// add stores a record beside the backup, signed where there is a key.
func add(t *testing.T, disk store.Store, doc map[string]any, key ed25519.PrivateKey) string {
	t.Helper()
	b, err := json.Marshal(doc)
	if err == nil && key != nil {
		b, err = proof.Sign(b, key)
	}
	if err != nil {
		t.Fatal(err)
	}
	name, err := archive.New(disk, archive.Options{}).AddRecord(t.Context(), archive.ProvenDir(backup), "", json.RawMessage(b))
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// list lists the records beside the backup.
func list(t *testing.T, disk store.Store) (all []store.Object) {
	t.Helper()
	for o, err := range disk.List(t.Context(), archive.ProvenDir(backup), "") {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, o)
	}
	return all
}

// What lies beside a backup counts only where it is of that backup, and, where there are keys, signed with one of them.
func TestWhatCounts(t *testing.T) {
	public, private, err1 := ed25519.GenerateKey(nil)
	later, second, err2 := ed25519.GenerateKey(nil)
	_, stranger, err3 := ed25519.GenerateKey(nil)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	with := func(name string, value any) map[string]any {
		doc := said(true)
		doc[name] = value
		return doc
	}
	without := func(name string) map[string]any {
		doc := said(true)
		delete(doc, name)
		return doc
	}
	both := []ed25519.PublicKey{public, later}
	for what, c := range map[string]struct {
		doc  map[string]any
		key  ed25519.PrivateKey
		keys []ed25519.PublicKey
		want error // nil: it counts
	}{
		"nobody asks for a signature":   {said(true), nil, nil, nil},
		"signed, and nobody asks":       {said(true), stranger, nil, nil},
		"signed":                        {said(true), private, both, nil},
		"signed with the newer key":     {said(true), second, both, nil},
		"a failure that is signed":      {said(false), private, both, nil},
		"not signed":                    {said(true), nil, both, proof.ErrUnsigned},
		"a failure that is not signed":  {said(false), nil, both, proof.ErrUnsigned},
		"signed by a stranger":          {said(true), stranger, both, proof.ErrOtherKey},
		"of another backup":             {with("backup", "base_000000010000000000000009"), nil, nil, proof.ErrOtherBackup},
		"signed, and of another backup": {with("backup", "base_000000010000000000000009"), private, both, proof.ErrOtherBackup},
		"without a backup":              {without("backup"), nil, nil, proof.ErrOtherBackup},
		"of one that was replaced":      {with("sentinel_sha256", strings.Repeat("0", 64)), nil, nil, proof.ErrReplaced},
		"signed, of one replaced":       {with("sentinel_sha256", strings.Repeat("0", 64)), private, both, proof.ErrReplaced},
		"it does not say of which":      {without("sentinel_sha256"), private, both, proof.ErrNameless},
		"signed long ago, stored again": {with("at", time.Now().Add(-3*time.Hour)), private, both, proof.ErrMoved},
	} {
		disk := &storetest.Memory{}
		name := add(t, disk, c.doc, c.key)
		p, err := proof.Read(t.Context(), archive.New(disk, archive.Options{ProofKeys: c.keys}), backup, sum, list(t, disk)[0])
		if c.want == nil {
			if err != nil || p.OK != c.doc["ok"] || p.Object != name || p.Took() != 2500*time.Millisecond || (p.Signer != "") != (c.key != nil) {
				t.Errorf("%s: %+v, %v", what, p, err)
			}
			continue
		}
		var refused *proof.RefusedError
		if !errors.Is(err, c.want) || !errors.As(err, &refused) || refused.Object != name || p != nil || time.Since(refused.When).Abs() > time.Minute {
			t.Errorf("%s: %+v, error %v, want %v", what, p, err, c.want)
		} else if u := refused.Unvouched; (u != nil) != (c.want == proof.ErrUnsigned || c.want == proof.ErrOtherKey) || u != nil && u.OK != c.doc["ok"] {
			t.Errorf("%s: without a signature it says %+v", what, u)
		}
		p, told, err := proof.Newest(t.Context(), archive.New(disk, archive.Options{ProofKeys: c.keys}), backup, sum, list(t, disk))
		if p != nil || err != nil || len(told) != 1 || !errors.Is(told[0], c.want) {
			t.Errorf("%s: newest %+v, told %v, error %v", what, p, told, err)
		}
	}
}

// A byte that was changed in a stored record that is signed is noticed, wherever it is.
func TestForged(t *testing.T) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	disk := &storetest.Memory{}
	name := add(t, disk, said(false), private)
	stored, err := store.ReadFile(t.Context(), disk, name, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.Put(t.Context(), name, strings.NewReader(strings.Replace(string(stored), `"ok":false`, `"ok":true `, 1))); err != nil {
		t.Fatal(err)
	}
	a := archive.New(disk, archive.Options{ProofKeys: []ed25519.PublicKey{public}})
	if p, err := proof.Read(t.Context(), a, backup, sum, list(t, disk)[0]); !errors.Is(err, proof.ErrForged) {
		t.Errorf("%+v, %v", p, err)
	}
}

// What is not even said of this backup is not said without a signature either.
func TestUnvouchedOfAnother(t *testing.T) {
	public, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	disk := &storetest.Memory{}
	doc := said(true)
	doc["sentinel_sha256"] = strings.Repeat("0", 64)
	add(t, disk, doc, nil)
	var no *proof.RefusedError
	if _, err := proof.Read(t.Context(), archive.New(disk, archive.Options{ProofKeys: []ed25519.PublicKey{public}}), backup, sum, list(t, disk)[0]); !errors.As(err, &no) || no.Unvouched != nil {
		t.Errorf("%v, %+v", err, no)
	}
}

// The newest that counts decides; those that are newer and do not are told. What is no record was stored when the store says, whatever its name does.
func TestNewest(t *testing.T) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	disk := &storetest.Memory{}
	for _, c := range []struct {
		ok  bool
		key ed25519.PrivateKey
	}{{false, nil}, {false, private}, {true, private}, {false, nil}, {true, nil}} {
		add(t, disk, said(c.ok), c.key)
		time.Sleep(time.Millisecond) // names are of microseconds
	}
	if err := disk.Put(t.Context(), archive.ProvenDir(backup)+"99991231T235959.000000Z-x.json", strings.NewReader("{")); err != nil {
		t.Fatal(err)
	}
	a := archive.New(disk, archive.Options{ProofKeys: []ed25519.PublicKey{public}})
	p, refused, err := proof.Newest(t.Context(), a, backup, sum, list(t, disk))
	if p == nil || !p.OK || p.Signer != proof.KeyID(public) || len(refused) != 3 || err != nil || !strings.Contains(refused[0].Error(), "99991231T235959") {
		t.Errorf("newest %+v, refused %v, error %v", p, refused, err)
	}
	refused = refused[1:]
	if text := proof.Tell(refused); !strings.Contains(text, "2 records of drills do not count as proof, such as "+archive.ProvenDir(backup)) || !strings.Contains(text, "not signed") {
		t.Error(text)
	}
	if text := proof.Tell(refused[:1]); !strings.Contains(text, "does not count as proof: it is not signed") {
		t.Error(text)
	}
	if text := proof.Tell(nil); text != "" {
		t.Error(text)
	}
	if p, refused, err := proof.Newest(t.Context(), a, backup, sum, nil); p != nil || refused != nil || err != nil {
		t.Errorf("of none: %+v, %v, %v", p, refused, err)
	}
}

// Names are of the writer's clock: one that was a day ahead does not hide what was found later.
func TestNewestByTheStore(t *testing.T) {
	disk := &storetest.Memory{}
	add(t, disk, said(true), nil)
	whole := list(t, disk)[0]
	text, err := store.ReadFile(t.Context(), disk, whole.Name, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	ahead := archive.ProvenDir(backup) + time.Now().Add(24*time.Hour).UTC().Format("20060102T150405.000000Z") + "-x.json"
	if err := errors.Join(disk.Delete(t.Context(), whole.Name), disk.Put(t.Context(), ahead, strings.NewReader(string(text)))); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Millisecond)
	later := add(t, disk, said(false), nil)
	p, refused, err := proof.Newest(t.Context(), archive.New(disk, archive.Options{}), backup, sum, list(t, disk))
	if err != nil || p == nil || p.Object != later || len(refused) > 0 {
		t.Errorf("%+v, %v, %v", p, refused, err)
	}
}

// A record's time is that of who wrote it; a copy of the archive is stored later, and a clock that is ahead proves nothing of the future.
func TestWhen(t *testing.T) {
	disk := &storetest.Memory{}
	for _, ahead := range []time.Duration{-48 * time.Hour, 48 * time.Hour} {
		doc := said(true)
		doc["at"] = time.Now().Add(ahead).UTC()
		add(t, disk, doc, nil)
		time.Sleep(time.Millisecond)
	}
	a := archive.New(disk, archive.Options{})
	for i, o := range list(t, disk) {
		p, err := proof.Read(t.Context(), a, backup, sum, o)
		if err != nil {
			t.Fatal(err)
		}
		if want := map[int]time.Time{0: p.At, 1: o.Modified}[i]; !p.When.Equal(want) {
			t.Errorf("record %d, of %s, stored %s, counts from %s", i, p.At, o.Modified, p.When)
		}
	}
}

// Whatever a record says, it is read or refused, and what has no good signature is no proof.
func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"at":"2026-01-02T03:04:05Z","backup":"base_000000010000000000000002","ok":true,"rto_seconds":1e300}`))
	f.Add([]byte(`{"ok":true,"signature":{"key":"x","ed25519":"AAAA"}}`))
	f.Add([]byte(fmt.Sprintf(`{"backup":%q,"sentinel_sha256":%q,"ok":true,"signature":`, backup, sum)))
	f.Add([]byte(`null`))
	public := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)).Public().(ed25519.PublicKey)
	f.Fuzz(func(t *testing.T, b []byte) {
		disk := &storetest.Memory{}
		if err := disk.Put(t.Context(), archive.ProvenDir(backup)+"20260102T030405.000000Z-x.json", strings.NewReader(string(b))); err != nil {
			t.Fatal(err)
		}
		o := list(t, disk)[0]
		if p, err := proof.Read(t.Context(), archive.New(disk, archive.Options{}), backup, sum, o); err == nil && (p.Backup != backup || p.Sentinel != sum || p.When.After(o.Modified) || p.Took() < 0) {
			t.Errorf("%q counts as %+v", b, p)
		}
		if p, err := proof.Read(t.Context(), archive.New(disk, archive.Options{ProofKeys: []ed25519.PublicKey{public}}), backup, sum, o); err == nil {
			t.Errorf("%q counts as %+v, and nobody has signed it", b, p)
		}
	})
}
