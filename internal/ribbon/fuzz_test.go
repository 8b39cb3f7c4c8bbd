package ribbon_test

import (
	"bytes"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/ribbon"
	"holdfast/internal/store/storetest"
)

// Whatever records say, there is a verdict, and nothing becomes restorable by an accepted hole or a verification.
func FuzzRecords(f *testing.F) {
	f.Add([]byte(`{"at":"2026-01-02T03:04:05Z","by":"a@b","timeline":1,"first":"000000010000000000000004","last":"000000010000000000000005","reason":"x"}`))
	f.Add([]byte(`{"timeline":1,"first":"000000010000000000000000","last":"00000001FFFFFFFF000000FF","segments":3,"problems":[{"segment":"000000010000000000000003","kind":"content","text":"y"}]}`))
	f.Add([]byte(`{"timeline":2,"first":"000000010000000000000005","last":"000000010000000000000003","revoked":true}`))
	f.Add([]byte(`{"result":"damaged","sentinel_sha256":"","objects":[{"name":"a/b","problem":"z"}]}`))
	f.Add([]byte(`{"result":"ok","sample":0.5,"ok":false}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		m := &storetest.Memory{}
		small(t, m)
		bare := judge(t, m, m, ribbon.Options{})
		backup := archive.BackupName(size.Name(1, 6))
		for _, dir := range []string{archive.GapDir, archive.VerifiedWALDir, archive.VerifiedDir(backup), archive.ProvenDir(backup)} {
			if err := m.Put(t.Context(), dir+"99991231T235959.000000Z-x.json", bytes.NewReader(doc)); err != nil {
				t.Fatal(err)
			}
		}
		r := judge(t, m, m, ribbon.Options{})
		for _, s := range r.Main {
			if s.Verdict == ribbon.Restorable && (told(bare.Main, s.From) != yes || told(bare.Main, s.To) != yes) {
				t.Errorf("%s made it restorable from %s to %s", doc, s.From, s.To)
			}
		}
	})
}
