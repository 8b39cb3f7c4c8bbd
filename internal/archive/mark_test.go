package archive_test

import (
	"bytes"
	"errors"
	"io/fs"
	"strings"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

// Marking a backup changes one key of its metadata.json and nothing else: not the order of keys, not what another program has noted there.
func TestMarkKeepsTheRest(t *testing.T) {
	for _, c := range []struct {
		doc, want string // without the seal; want is "" for nothing to change
		permanent bool
	}{
		{`{"start_time":"2024-05-06T07:08:09Z","is_permanent":false,"user_data":{"is_permanent":true}}`,
			`{"start_time":"2024-05-06T07:08:09Z","user_data":{"is_permanent":true},"is_permanent":true`, true},
		{`{"is_permanent":true,"theirs":[1.50,"a\u003c"],"system_identifier":18446744073709551615}`,
			`{"theirs":[1.50,"a\u003c"],"system_identifier":18446744073709551615,"is_permanent":false`, false},
		{`{"a":1}`, `{"a":1,"is_permanent":true`, true},
		{`{}`, `{"is_permanent":true`, true},
		{`{"is_permanent":true,"is_permanent":false,"IS_PERMANENT":true}`, `{"is_permanent":true`, true},
		{` {"is_permanent" : true, "a":1} `, ``, true},
		{`{"a":1,"is_permanent":false,"user_data":"is_permanent"}`, ``, false},
	} {
		disk := &storetest.Memory{}
		const object = "basebackups_005/" + backupName + "/metadata.json"
		if err := disk.Put(t.Context(), object, strings.NewReader(c.doc)); err != nil {
			t.Fatal(err)
		}
		a := archive.New(disk, archive.Options{})
		changed, err := a.Mark(t.Context(), backupName, c.permanent)
		if err != nil || changed != (c.want != "") {
			t.Errorf("%s: changed %v, %v", c.doc, changed, err)
		}
		got, err := store.ReadFile(t.Context(), disk, object, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if c.want == "" {
			if string(got) != c.doc {
				t.Errorf("%s became %s", c.doc, got)
			}
			continue
		}
		if !bytes.HasPrefix(got, []byte(c.want+`,"HoldfastSeal":"`)) {
			t.Errorf("%s became %s, want %s", c.doc, got, c.want)
		}
		if sealed, err := archive.CheckSeal(got); !sealed || err != nil {
			t.Errorf("%s: seal %v, %v", got, sealed, err)
		}
		if again, err := a.Mark(t.Context(), backupName, c.permanent); again || err != nil {
			t.Errorf("again: changed %v, %v", again, err)
		}
		if m, err := a.Metadata(t.Context(), backupName); err != nil || m.IsPermanent != c.permanent {
			t.Errorf("%+v, %v", m, err)
		}
	}
}

// What is no document is left as it is.
func TestMarkRefuses(t *testing.T) {
	for _, doc := range []string{``, `null`, `[]`, `{"a":1`, `{"a":1}x`, `{"a":1}{}`, `{"a"}`, `"x"`} {
		disk := &storetest.Memory{}
		const object = "basebackups_005/" + backupName + "/metadata.json"
		if err := disk.Put(t.Context(), object, strings.NewReader(doc)); err != nil {
			t.Fatal(err)
		}
		if changed, err := archive.New(disk, archive.Options{}).Mark(t.Context(), backupName, true); changed || err == nil || !strings.Contains(err.Error(), object) {
			t.Errorf("%q: changed %v, %v", doc, changed, err)
		}
	}
	if _, err := archive.New(&storetest.Memory{}, archive.Options{}).Mark(t.Context(), backupName, true); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a document: %v", err)
	}
}
