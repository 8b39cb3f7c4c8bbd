package archive_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/compress"
	"holdfast/internal/store/storetest"
)

// readManifest reads doc as the manifest of a backup; what is unchanged comes as a last part without a name.
func readManifest(ctx context.Context, t *testing.T, doc []byte) (h archive.ManifestHeader, parts []*archive.ManifestPart, err error) {
	t.Helper()
	m := &storetest.Memory{}
	z := compress.Compress(bytes.NewReader(doc), compress.Zstd, compress.Options{})
	defer z.Close()
	if err := m.Put(ctx, archive.Folder(backupName)+"manifest.json.zst", z); err != nil {
		t.Fatal(err)
	}
	mf, err := archive.New(m, archive.Options{}).OpenManifest(ctx, backupName)
	if err != nil {
		return h, nil, err
	}
	defer mf.Close()
	for {
		p, err := mf.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return h, nil, err
		}
		parts = append(parts, p)
	}
	if mf.Header.Unchanged == 0 {
		return mf.Header, parts, nil
	}
	rest := &archive.ManifestPart{}
	for {
		more, err := mf.NextUnchanged()
		if err == io.EOF {
			return mf.Header, append(parts, rest), nil
		}
		if err != nil {
			return h, nil, err
		}
		rest.Members = append(rest.Members, more...)
	}
}

const manifestDoc = `{"holdfast_manifest":1,"backup":"` + backupName + `","checksum":"CRC32C","started":"2026-05-06T07:08:09Z","parts":2}
{"part":"part_001.tar.zst","size":7,"members":[{"path":"base/5/1","size":3,"mode":384,"mtime":"2026-05-06T07:08:09.1Z","crc32c":1,"offset":512}]}
{"part":"pg_control.tar.zst","size":7,"members":[{"path":"link","type":"link","link":"/x","mode":511,"mtime":"2026-05-06T07:08:09Z"}]}
`

// increments of block 1 and of none.
const deltaDoc = `{"holdfast_manifest":2,"backup":"` + backupName + `","checksum":"CRC32C","started":"2026-05-06T07:08:09Z","parts":1,` +
	`"parent":{"backup":"base_000000010000000000000002","sentinel_sha256":"ab"},"unchanged":2}
{"part":"part_001.tar.zst","size":7,"members":[{"path":"base/5/1","size":8212,"mode":384,"mtime":"2026-05-06T07:08:09.1Z","ctime":"2026-05-06T07:08:09.1Z","inode":7,` +
	`"crc32c":1,"offset":512,"pages":1,"increment":{"size":24576,"blocks":"OjAAAAEAAAAAAAAAEAAAAAEA"}},{"path":"base/5/2","size":16,"mode":384,"mtime":"2026-05-06T07:08:09Z","increment":{"size":8192,"blocks":"OjAAAAAAAAA="}}]}
{"unchanged":[{"path":"base/5/3","size":8192,"mode":384,"mtime":"2026-05-06T07:08:09Z","ctime":"2026-05-06T07:08:09.1Z","inode":8}]}
{"unchanged":[{"path":"base/5/4","mode":384,"mtime":"2026-05-06T07:08:09Z"}]}
`

// A manifest is read only when it is whole, of this backup, and describes nothing outside of its directory.
func TestManifestIsNotTrusted(t *testing.T) {
	if h, parts, err := readManifest(t.Context(), t, []byte(manifestDoc)); err != nil || h.Parts != 2 || len(parts) != 2 {
		t.Fatalf("%+v, %v, %v", h, parts, err)
	}
	for from, to := range map[string]string{
		`"parts":2`:              `"parts":1`,
		`"parts":2}`:             `"parts":3}`,
		`fest":1`:                `fest":3`,
		backupName:               "base_000000010000000000000004",
		"CRC32C":                 "SHA256",
		`"part_001.tar.zst"`:     `"../part_001.tar.zst"`,
		`"pg_control.tar.zst"`:   `""`,
		`"path":"base/5/1"`:      `"path":"../1"`,
		`"path":"link"`:          `"path":"/etc/passwd"`,
		`"type":"link"`:          `"type":"device"`,
		`"size":3`:               `"size":-3`,
		`"offset":512`:           `"offset":-1`,
		`"mode":511`:             `"mode":-1`,
		"}\n{\"part\":\"pg_cont": "}\n{\"part\":\"pg_cont\n",
	} {
		doc := strings.Replace(manifestDoc, from, to, 1)
		if doc == manifestDoc {
			t.Fatalf("%s is not in the manifest", from)
		}
		if _, parts, err := readManifest(t.Context(), t, []byte(doc)); err == nil {
			t.Errorf("%s for %s: read as %v", to, from, parts)
		}
	}
}

// So is that of a delta, with what is unchanged, and with increments that fit together.
func TestManifestOfADelta(t *testing.T) {
	h, parts, err := readManifest(t.Context(), t, []byte(deltaDoc))
	if err != nil || h.Parent == nil || h.Parent.Backup != "base_000000010000000000000002" || len(parts) != 2 || len(parts[1].Members) != 2 {
		t.Fatalf("%+v, %v, %v", h, parts, err)
	}
	for i, want := range []string{"{1}", "{}"} {
		if blocks, err := parts[0].Members[i].Blocks(); err != nil || blocks.String() != want {
			t.Errorf("member %d has blocks %v, %v", i, blocks, err)
		}
	}
	for from, to := range map[string]string{
		`"unchanged":2`:     `"unchanged":1`,
		`"unchanged":2}`:    `"unchanged":3}`,
		`"size":8212`:       `"size":8211`,
		`"pages":1`:         `"pages":2`,
		`"size":24576`:      `"size":0`,
		`"size":8192,"b`:    `"size":8191,"b`,
		`"path":"base/5/4"`: `"path":"base/5/4","type":"dir"`,
		`"path":"base/5/3"`: `"path":"base/5/3","pages":1`,
		`"backup":"base_000000010000000000000002"`: `"backup":"base_2"`,
		`"parent"`: `"parents"`,
	} {
		doc := strings.Replace(deltaDoc, from, to, 1)
		if doc == deltaDoc {
			t.Fatalf("%s is not in the manifest", from)
		}
		if _, parts, err := readManifest(t.Context(), t, []byte(doc)); err == nil {
			t.Errorf("%s for %s: read as %v", to, from, parts)
		}
	}
}

// What is accepted reads the same when it is written again.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(manifestDoc))
	f.Add([]byte(deltaDoc))
	f.Add([]byte(strings.SplitAfter(strings.Replace(manifestDoc, `"parts":2`, `"parts":0`, 1), "\n")[0]))
	f.Fuzz(func(t *testing.T, doc []byte) {
		h, parts, err := readManifest(t.Context(), t, doc)
		if err != nil {
			return
		}
		write := func(h archive.ManifestHeader, parts []*archive.ManifestPart) ([]byte, error) {
			var b bytes.Buffer
			out := json.NewEncoder(&b)
			if err := out.Encode(h); err != nil {
				return nil, err
			}
			for _, p := range parts {
				var line any = p
				if p.Name == "" {
					b.WriteString(strings.Repeat("{}\n", h.Unchanged-1)) // all on the last line
					line = map[string]any{"unchanged": p.Members}
				}
				if err := out.Encode(line); err != nil {
					return nil, err
				}
			}
			return b.Bytes(), nil
		}
		once, err := write(h, parts)
		if err != nil {
			return // a year beyond 9999 can be read from some documents and not be written
		}
		h, parts, err = readManifest(t.Context(), t, once)
		if err != nil {
			t.Fatalf("%s\nwritten as\n%s\nis refused: %v", doc, once, err)
		}
		if twice, err := write(h, parts); err != nil || !bytes.Equal(twice, once) {
			t.Fatalf("%s\nbecame\n%s, %v", once, twice, err)
		}
	})
}
