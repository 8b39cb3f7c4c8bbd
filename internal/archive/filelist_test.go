package archive_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

const listedBackup = "base_000000010000000000000002"

// list reads the list of a backup whose objects are given: files as "path", with + for an increment and - for nothing stored.
func list(t *testing.T, sentinel, metadata string) (files, members []string, err error) {
	t.Helper()
	m := &storetest.Memory{}
	objects := map[string]string{archive.BackupDir + listedBackup + "_backup_stop_sentinel.json": sentinel}
	if metadata != "" {
		objects[archive.Folder(listedBackup)+"files_metadata.json"] = metadata
	}
	for name, content := range objects {
		if err := m.Put(t.Context(), name, strings.NewReader(content)); err != nil {
			t.Fatal(err)
		}
	}
	return read(t.Context(), archive.New(m, archive.Options{}))
}

func read(ctx context.Context, a *archive.Archive) (files, members []string, err error) {
	s, err := a.Sentinel(ctx, listedBackup)
	if err != nil {
		return nil, nil, err
	}
	err = a.ReadFileList(ctx, listedBackup, s, archive.FileListVisitor{
		File: func(f archive.ListedFile) error {
			mark := map[[2]bool]string{{true, false}: "+", {false, true}: "-"}[[2]bool{f.Incremented, f.Skipped}]
			files = append(files, f.Path+mark)
			return nil
		},
		Member: func(part, path string) error {
			members = append(members, part+" "+path)
			return nil
		},
	})
	return files, members, err
}

const someFiles = `"Files":{"/base/5/1":{"IsIncremented":true,"IsSkipped":false,"MTime":"2024-05-06T09:00:00.123456789+02:00",` +
	`"CorruptBlocks":{"CorruptBlocksCount":2,"SomeCorruptBlocks":[4,9]},"UpdatesCount":0},` +
	`"base/5/2":{"IsIncremented":false,"IsSkipped":true,"MTime":""},"/":{"IsSkipped":false,"IsIncremented":false}}`

const someParts = `"TarFileSets":{"part_001.tar.lz4":["/base/5/1","/"],"part_002.tar.lz4":null,"part_003.tar.lz4":[]}`

// The list is read wherever a release of WAL-G put it, and what must have one and has none is an error.
func TestFileListOfEveryAge(t *testing.T) {
	const databases = `,"DatabasesByNames":{"postgres":{"oid":5,"tables":{"x":[1,{"y":[1e999,null]}]}}}`
	files, members := []string{"base/5/1+", "base/5/2-", "."}, []string{"part_001.tar.lz4 base/5/1", "part_001.tar.lz4 ."}
	for what, x := range map[string]struct {
		sentinel, metadata string
		files, members     []string
		err                error
	}{
		"beside, today":         {`{"Version":2}`, "{" + someFiles + "," + someParts + databases + "}\n", files, members, nil},
		"beside, other order":   {`{"Version":2}`, "{" + someParts + databases + "," + someFiles + "}", files, members, nil},
		"beside, no parts":      {`{"Version":2}`, "{" + someFiles + "}", files, nil, nil},
		"in the sentinel":       {`{"LSN":40,` + someFiles + `,` + someParts + `,"PgVersion":100004}`, "", files, members, nil},
		"in the sentinel, null": {`{"LSN":40,"Files":null,"TarFileSets":null}`, "", nil, nil, archive.ErrNoFileList},
		"none, the oldest":      {`{}`, "", nil, nil, archive.ErrNoFileList},
		"none, on purpose":      {`{"Version":2,"FilesMetadataDisabled":true}`, "", nil, nil, archive.ErrNoFileList},
		"none, lost":            {`{"Version":2}`, "", nil, nil, fs.ErrNotExist},
	} {
		gotFiles, gotMembers, err := list(t, x.sentinel, x.metadata)
		if !errors.Is(err, x.err) || !slices.Equal(gotFiles, x.files) || !slices.Equal(gotMembers, x.members) {
			t.Errorf("%s: %q, %q, %v; want %q, %q, %v", what, gotFiles, gotMembers, err, x.files, x.members, x.err)
		}
	}
}

// What is no list is refused, wherever it ends.
func TestFileListRefuses(t *testing.T) {
	whole := "{" + someFiles + "," + someParts + "}"
	for n := range len(whole) {
		if _, _, err := list(t, `{"Version":2}`, whole[:n]+" "); err == nil {
			t.Errorf("the first %d bytes are accepted: %s", n, whole[:n])
		}
	}
	entry := func(name, e string) string { return fmt.Sprintf(`{"Files":{%q:{%s}}}`, name, e) }
	for what, doc := range map[string]string{
		"nothing listed":       `{"TarFileSets":{}}`,
		"null":                 `{"Files":null}`,
		"array":                `{"Files":[]}`,
		"behind its end":       whole + `{}`,
		"no IsSkipped":         entry("/a", `"IsIncremented":false`),
		"no IsIncremented":     entry("/a", `"IsSkipped":false`),
		"both":                 entry("/a", `"IsIncremented":true,"IsSkipped":true`),
		"outside":              entry("/../a", `"IsIncremented":false,"IsSkipped":false`),
		"a part elsewhere":     `{"Files":{},"TarFileSets":{"../x":["/a"]}}`,
		"a member outside":     `{"Files":{},"TarFileSets":{"x":["../a"]}}`,
		"members of no kind":   `{"Files":{},"TarFileSets":{"x":{"/a":1}}}`,
		"nested beyond reason": `{"Files":{},"x":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `}`,
	} {
		if files, _, err := list(t, `{"Version":2}`, doc); err == nil {
			t.Errorf("%s: accepted as %q", what, files)
		}
	}
}

// endless is a store whose list, or sentinel with the list in it, has so many files, made up while it is read.
type endless struct {
	store.Store
	object string
	prefix string
	files  int
}

func (e endless) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if name != e.object {
		return e.Store.Open(ctx, name)
	}
	r, w := io.Pipe()
	go func() {
		_, err := io.WriteString(w, e.prefix+`"Files":{`)
		for i := 0; i < e.files && err == nil; i++ {
			comma := ","
			if i == 0 {
				comma = ""
			}
			_, err = fmt.Fprintf(w, `%s"/base/%d/%d":{"IsIncremented":false,"IsSkipped":true,"MTime":"2024-05-06T09:00:00.123456789+02:00","UpdatesCount":0}`, comma, i%7, i)
		}
		if err == nil {
			_, err = io.WriteString(w, `}}`)
		}
		w.CloseWithError(err)
	}()
	return r, nil
}

// A list needs no more memory the longer it is; a single value that is larger than any is refused before it is held.
func TestFileListIsBounded(t *testing.T) {
	m := &storetest.Memory{}
	sentinel := archive.BackupDir + listedBackup + "_backup_stop_sentinel.json"
	if err := m.Put(t.Context(), sentinel, strings.NewReader(`{"Version":2}`)); err != nil {
		t.Fatal(err)
	}
	const files = 300_000 // 40 MB
	for what, e := range map[string]endless{
		"beside":   {m, archive.Folder(listedBackup) + "files_metadata.json", "{", files},
		"embedded": {m, sentinel, `{"LSN":40,`, files},
	} {
		a := archive.New(e, archive.Options{})
		s, err := a.Sentinel(t.Context(), listedBackup)
		if err != nil {
			t.Fatal(err)
		}
		n, most := 0, uint64(0)
		var before, now runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		err = a.ReadFileList(t.Context(), listedBackup, s, archive.FileListVisitor{File: func(archive.ListedFile) error {
			if n++; n%(files/3) == 0 {
				runtime.GC()
				runtime.ReadMemStats(&now)
				most = max(most, now.HeapAlloc)
			}
			return nil
		}})
		if err != nil || n != files || most > before.HeapAlloc+4<<20 {
			t.Errorf("%s: %d files, heap grew from %d to %d, %v", what, n, before.HeapAlloc, most, err)
		}
	}
	huge := `{"Files":{"/a":{"IsIncremented":false,"IsSkipped":false,"MTime":"` + strings.Repeat("x", 40<<20) + `"}}}`
	if _, _, err := list(t, `{"Version":2}`, huge); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("a value of 40 MiB: %v", err)
	}
}

// What is accepted is read the same when it is written again.
func FuzzFileList(f *testing.F) {
	f.Add([]byte("{" + someFiles + "," + someParts + "}"))
	f.Add([]byte(`{"TarFileSets":null,"Files":{},"DatabasesByNames":{"a":[1,2,{"b":null}]}}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		files, members, err := list(t, `{"Version":2}`, string(doc)+" ")
		if err != nil {
			return
		}
		var again strings.Builder
		again.WriteString(`{"Files":{`)
		quote := func(s string) string {
			b, err := json.Marshal(s)
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
		for i, name := range files {
			if i > 0 {
				again.WriteByte(',')
			}
			// A name may end in the mark itself; the last one is the list's.
			incremented, skipped := strings.HasSuffix(name, "+"), strings.HasSuffix(name, "-")
			path := strings.TrimSuffix(strings.TrimSuffix(name, "+"), "-")
			if incremented {
				path = strings.TrimSuffix(name, "+")
			}
			fmt.Fprintf(&again, `%s:{"IsIncremented":%t,"IsSkipped":%t}`, quote("/"+path), incremented, skipped)
		}
		again.WriteString(`},"TarFileSets":{`)
		for i, m := range members {
			if i > 0 {
				again.WriteByte(',')
			}
			part, path, _ := strings.Cut(m, " ")
			if strings.Contains(part, " ") || strings.Contains(path, " ") {
				return // not told apart here
			}
			fmt.Fprintf(&again, `%s:[%s]`, quote(part), quote("/"+path))
		}
		again.WriteString(`}}`)
		moreFiles, moreMembers, err := list(t, `{"Version":2}`, again.String())
		if err != nil || len(moreFiles) != len(files) || !slices.Equal(moreMembers, members) {
			t.Fatalf("%q\nread as %q, %q\nwritten as %s\nread as %q, %q, %v", doc, files, members, again.String(), moreFiles, moreMembers, err)
		}
	})
}

// The version that WAL-E kept beside a backup is read in every form PostgreSQL prints it.
func TestServerVersion(t *testing.T) {
	for text, want := range map[string]int{
		"PostgreSQL 13.23 on x86_64-pc-linux-gnu, compiled by gcc": 130023, "PostgreSQL 9.6.24": 90624, "PostgreSQL 12beta2 on": 120000,
		"": 0, "EnterpriseDB 13.2": 0, "PostgreSQL x": 0, "PostgreSQL 1300000.1": 0, "PostgreSQL -1": 0,
	} {
		m := &storetest.Memory{}
		if err := m.Put(t.Context(), archive.Folder(listedBackup)+"extended_version.txt", strings.NewReader(text)); err != nil {
			t.Fatal(err)
		}
		got, err := archive.New(m, archive.Options{}).ServerVersion(t.Context(), listedBackup)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
}

// WAL-E says where a backup ended in keys of its own.
func TestWALESentinel(t *testing.T) {
	s, err := archive.ParseSentinel([]byte(`{"wal_segment_backup_stop":"000000010000000200000003","wal_segment_offset_backup_stop":"00000256","expanded_size_bytes":33318474}`))
	if err != nil || s.FinishLSN == nil || s.FinishLSN.String() != "2/3000100" || s.UncompressedSize != 33318474 {
		t.Errorf("%+v, %v", s, err)
	}
	for _, doc := range []string{
		`{"wal_segment_backup_stop":"x","wal_segment_offset_backup_stop":"00000256"}`,
		`{"wal_segment_backup_stop":"000000010000000200000003","wal_segment_offset_backup_stop":"99999999"}`,
		`{"wal_segment_backup_stop":"000000010000000200000003"}`,
	} {
		if s, err := archive.ParseSentinel([]byte(doc)); err != nil || s.FinishLSN != nil {
			t.Errorf("%s: %+v, %v", doc, s, err)
		}
	}
}
