package pgbackrest_test

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha1"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/compress"
	"holdfast/internal/pgbackrest"
	"holdfast/internal/store/storetest"
)

// The writer makes repositories as pgBackRest 2.60 makes them, small ones, for what the real tool does not let a test do. What it knows of the format it
// has from that tool's repositories, and test/pgbackrest reads those.

// encrypt is what `openssl enc -aes-256-cbc -md sha1` writes, without the magic where raw is set.
func encrypt(passphrase string, raw bool, content []byte) []byte {
	if passphrase == "" {
		return content
	}
	seed := sha1.Sum(content)
	salt := seed[:8]
	var key, last []byte
	for len(key) < 48 {
		sum := sha1.Sum(slices.Concat(last, []byte(passphrase), salt))
		last = sum[:]
		key = append(key, last...)
	}
	pad := aes.BlockSize - len(content)%aes.BlockSize
	out := slices.Concat(content, bytes.Repeat([]byte{byte(pad)}, pad))
	block, err := aes.NewCipher(key[:32])
	if err != nil {
		panic(err)
	}
	cipher.NewCBCEncrypter(block, key[32:48]).CryptBlocks(out, out)
	if raw {
		return slices.Concat(salt, out)
	}
	return slices.Concat([]byte("Salted__"), salt, out)
}

// squeeze compresses; raw is the form of bundles and blocks.
func squeeze(codec string, raw bool, content []byte) []byte {
	var out bytes.Buffer
	var w io.WriteCloser
	switch codec {
	case "none":
		return content
	case "gz":
		if w = gzip.NewWriter(&out); raw {
			w = zlib.NewWriter(&out)
		}
		if _, err := w.Write(content); err != nil {
			panic(err)
		}
		if err := w.Close(); err != nil {
			panic(err)
		}
		return out.Bytes()
	}
	in := compress.Compress(bytes.NewReader(content), map[string]compress.Method{"zst": compress.Zstd, "lz4": compress.LZ4}[codec], compress.Options{})
	if _, err := io.Copy(&out, in); err != nil {
		panic(err)
	}
	if err := in.Close(); err != nil {
		panic(err)
	}
	return out.Bytes()
}

// A line of a document; section "" is that of the line before.
type line struct{ section, key, value string }

// document makes an info file or a manifest of lines.
func document(lines ...line) []byte {
	lines = slices.Concat([]line{{"backrest", "backrest-format", "5"}, {"", "backrest-version", `"2.60.0"`}}, lines)
	var text, sum strings.Builder
	sum.WriteString("{")
	for i, l := range lines {
		switch {
		case l.section != "":
			if i > 0 {
				sum.WriteString("},")
				text.WriteString("\n")
			}
			fmt.Fprintf(&text, "[%s]\n", l.section)
			fmt.Fprintf(&sum, "%s:{", quoted(l.section))
		default:
			sum.WriteString(",")
		}
		fmt.Fprintf(&text, "%s=%s\n", l.key, l.value)
		fmt.Fprintf(&sum, "%s:%s", quoted(l.key), l.value)
	}
	sum.WriteString("}}")
	fmt.Fprintf(&text, "\n[backrest]\nbackrest-checksum=%q\n", hex.EncodeToString(sha1Of([]byte(sum.String()))))
	return []byte(text.String())
}

func quoted(s string) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		panic(err)
	}
	return strings.TrimSpace(b.String())
}

func sha1Of(b []byte) []byte { s := sha1.Sum(b); return s[:] }

// encodeMap writes a block map.
func encodeMap(blocks []pgbackrest.Block, blockSize int64, sum func(i int) []byte) []byte {
	type origin struct{ offset, stored, super, next int64 }
	out := []byte{0}
	put := func(n int64) { out = binary.AppendUvarint(out, uint64(n)) }
	seen := map[uint32]*origin{}
	last := int64(0)
	for i := 0; i < len(blocks); {
		reference, bundle, offset, _, _, _ := blocks[i].Fields()
		end := i + 1
		for end < len(blocks) {
			if r, _, _, _, _, _ := blocks[end].Fields(); r != reference {
				break
			}
			end++
		}
		head := int64(reference) << 3
		if end == len(blocks) {
			head |= 1
		}
		o := seen[reference]
		goesOn := false
		switch {
		case o == nil:
			if bundle > 0 {
				head |= 2
			}
			if offset > 0 {
				head |= 4
			}
			put(head)
			if bundle > 0 {
				put(int64(bundle))
			}
			if offset > 0 {
				put(offset)
			}
			o = &origin{super: blockSize}
			seen[reference] = o
		case offset == o.offset:
			goesOn = true
		default:
			if offset > o.offset+o.stored {
				head |= 4
			}
			put(head)
			if head&4 != 0 {
				put(offset - o.offset - o.stored)
			}
		}
		for i < end {
			_, _, at, stored, super, first := blocks[i].Fields()
			count := int64(1)
			for i+int(count) < end {
				if _, _, next, _, _, _ := blocks[i+int(count)].Fields(); next != at {
					break
				}
				count++
			}
			flags := int64(0)
			if i+int(count) == end {
				flags = 1
			}
			total := true
			if goesOn {
				goesOn = false
				if flags == 1 {
					head |= 4
				}
				put(head | 2)
			} else {
				if total = count != (super+blockSize-1)/blockSize || first != 0; total {
					flags |= 4
				}
				if super != o.super {
					flags |= 2
				}
				size := stored
				if last != 0 {
					size = (stored-last)<<1 ^ (stored-last)>>63
				}
				put(size<<3 | flags)
				if super != o.super {
					rest := super % blockSize
					if put(super/blockSize<<1 | min(rest, 1)); rest > 0 {
						put(rest)
					}
				}
				*o = origin{at, stored, super, 0}
			}
			last = stored
			if total {
				moved := first - o.next
				if put((count-1)<<1 | min(moved, 1)); moved > 0 {
					put(moved)
				}
			}
			for n := range count {
				out = append(out, sum(i+int(n))...)
			}
			o.next = first + count
			i += int(count)
		}
	}
	return out
}

// style is how a repository is written.
type style struct {
	codec       string
	passphrase  string
	bundle, raw bool // raw needs bundle
	blocks      bool
	old         bool // as release 2.45: no list of references, no raw
}

// ext is what the names of files end in.
func (s style) ext() string {
	if s.codec == "none" {
		return ""
	}
	return "." + s.codec
}

// repository is one that is being written.
type repository struct {
	style
	store   *storetest.Memory
	backups []*written
	info    []line
}

// written is a backup.
type written struct {
	label, kind string
	files       map[string]string // contents, by name of pgBackRest
	at          map[string]stored
	references  []string
	manifest    []line
}

// stored is where a file is.
type stored struct {
	reference  string
	bundle     int
	offset     int
	length     int
	blockSize  int64
	mapLength  int
	blocks     []pgbackrest.Block
	sums       [][]byte
	references []string
}

const (
	stanza = "main"
	system = 7710632232432969292
)

// secret is the passphrase that a document has for what it opens, "" where nothing is encrypted.
func (r *repository) secret(what string) string {
	if r.passphrase == "" {
		return ""
	}
	return what + " of " + r.passphrase
}

func newRepository(s style) *repository { return &repository{style: s, store: &storetest.Memory{}} }

func (r *repository) put(t testing.TB, name string, content []byte) {
	t.Helper()
	if err := r.store.Put(t.Context(), name, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
}

// add writes a backup of files, of kind full, diff or incr. random decides what pgBackRest decides by sizes.
func (r *repository) add(t testing.TB, kind string, files map[string]string, random *rand.Rand) *written {
	t.Helper()
	b := &written{kind: kind, files: files, at: map[string]stored{}}
	n := len(r.backups)
	b.label = fmt.Sprintf("20260101-%06dF", n)
	var prior *written
	if kind != "full" {
		full := n - 1
		for r.backups[full].kind != "full" {
			full--
		}
		if prior = r.backups[n-1]; kind == "diff" {
			prior = r.backups[full]
		}
		b.label = r.backups[full].label + fmt.Sprintf("_20260101-%06d%s", n, map[string]string{"diff": "D", "incr": "I"}[kind])
		b.references = slices.Clone(prior.references)
	}
	b.references = append(b.references, b.label)
	dir := "backup/" + stanza + "/" + b.label + "/"
	secret := r.secret("files")
	bundle, number := []byte{}, 1
	flush := func() {
		if len(bundle) > 0 {
			r.put(t, fmt.Sprintf("%sbundle/%d", dir, number), bundle)
			bundle, number = nil, number+1
		}
	}
	entries := []line{}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		content := files[name]
		at := stored{reference: b.label, references: b.references}
		fields := map[string]any{"size": len(content), "timestamp": 1700000000 + n}
		switch {
		case content == "":
			at = stored{}
		case prior != nil && prior.files[name] == content:
			at = prior.at[name]
		default:
			var body []byte
			inBundle := r.bundle && random.IntN(3) > 0
			if r.blocks && len(content) > 2*8192 {
				if inBundle {
					at.bundle, at.offset = number, len(bundle)
				}
				var was *stored
				if prior != nil {
					if p, ok := prior.at[name]; ok && p.mapLength > 0 {
						was = &p
					}
				}
				body = r.cut(&at, content, was, len(b.references)-1, random)
			} else {
				raw := inBundle && r.raw
				body = encrypt(secret, raw, squeeze(r.codec, raw, []byte(content)))
			}
			if at.length = len(body); inBundle {
				at.bundle, at.offset = number, len(bundle)
				if bundle = append(bundle, body...); random.IntN(8) == 0 {
					flush()
				}
			} else if at.mapLength > 0 {
				r.put(t, dir+name+".pgbi", body)
			} else {
				r.put(t, dir+name+r.ext(), body)
			}
		}
		if content != "" {
			b.at[name] = at
			fields["checksum"] = hex.EncodeToString(sha1Of([]byte(content)))
			if at.length != len(content) {
				fields["repo-size"] = at.length
			}
			if at.reference != b.label {
				fields["reference"] = at.reference
			}
			if at.bundle != 0 {
				fields["bni"] = at.bundle
				if at.offset != 0 {
					fields["bno"] = at.offset
				}
			}
			if at.mapLength != 0 {
				fields["bi"], fields["bim"] = at.blockSize/8192, at.mapLength
			}
		}
		entries = append(entries, line{"", name, jsonOf(fields)})
	}
	flush()
	entries[0].section = "target:file"
	list := strings.Join(b.references, ",")
	b.manifest = []line{{"backup", "backup-archive-start", `"` + segment(n) + `"`}, {"", "backup-archive-stop", `"` + segment(n) + `"`}}
	if r.raw {
		b.manifest = append(b.manifest, line{"", "backup-bundle-raw", "true"})
	}
	b.manifest = append(b.manifest, line{"", "backup-label", `"` + b.label + `"`}, line{"", "backup-lsn-start", fmt.Sprintf(`"0/%X00028"`, n+2)},
		line{"", "backup-lsn-stop", fmt.Sprintf(`"0/%X00100"`, n+2)})
	if !r.old {
		b.manifest = append(b.manifest, line{"", "backup-reference", `"` + list + `"`})
	}
	b.manifest = append(b.manifest, line{"backup:db", "db-id", "1"}, line{"", "db-system-id", fmt.Sprint(system)}, line{"", "db-version", `"15"`},
		line{"backup:option", "option-compress-type", `"` + r.codec + `"`}, line{"", "option-online", "true"},
		line{"backup:target", "pg_data", `{"path":"/srv/data","type":"path"}`},
		line{"", "pg_tblspc/16384", `{"path":"/srv/space","tablespace-id":"16384","tablespace-name":"space","type":"link"}`})
	if secret != "" {
		b.manifest = append(b.manifest, line{"cipher", "cipher-pass", quoted(secret)})
	}
	b.manifest = append(b.manifest, entries...)
	b.manifest = append(b.manifest, line{"target:file:default", "group", `"postgres"`}, line{"", "mode", `"0600"`}, line{"", "user", `"postgres"`},
		line{"target:link", "pg_data/pg_tblspc/16384", `{"destination":"/srv/space"}`},
		line{"target:path", "pg_data", "{}"}, line{"", "pg_data/base", `{"mode":"0750"}`}, line{"", "pg_tblspc", "{}"},
		line{"target:path:default", "mode", `"0700"`})
	r.backups = append(r.backups, b)
	r.writeManifest(t, b, document(b.manifest...))
	entry := map[string]any{"backup-type": kind, "db-id": 1, "backup-timestamp-start": 1700000000 + n*10, "backup-timestamp-stop": 1700000005 + n*10,
		"backup-archive-start": segment(n), "backup-archive-stop": segment(n), "backup-lsn-start": fmt.Sprintf("0/%X00028", n+2), "backup-lsn-stop": fmt.Sprintf("0/%X00100", n+2),
		"backrest-version": "2.60.0", "backup-error": false}
	if prior != nil {
		entry["backup-prior"], entry["backup-reference"] = prior.label, b.references[:len(b.references)-1]
	}
	section := ""
	if n == 0 {
		section = "backup:current"
	}
	r.info = append(r.info, line{section, b.label, jsonOf(entry)})
	r.writeInfo(t)
	r.wal(t, segment(n), walContent(n))
	return b
}

// segment is the one that a backup begins and ends in.
func segment(n int) string { return fmt.Sprintf("0000000100000000000000%02X", n+2) }

// walContent stands for 1 MiB of WAL.
func walContent(n int) []byte { return bytes.Repeat([]byte{byte(n), 1, 2, 3}, 1<<18) }

func (r *repository) wal(t testing.TB, name string, content []byte) {
	t.Helper()
	object := fmt.Sprintf("archive/%s/15-1/%s/%s-%x%s", stanza, name[:16], name, sha1Of(content), r.ext())
	r.put(t, object, encrypt(r.secret("wal"), false, squeeze(r.codec, false, content)))
}

func (r *repository) writeManifest(t testing.TB, b *written, content []byte) {
	t.Helper()
	for _, copy := range []string{"", ".copy"} {
		r.put(t, "backup/"+stanza+"/"+b.label+"/backup.manifest"+copy, encrypt(r.secret("manifests"), false, content))
	}
}

func (r *repository) writeInfo(t testing.TB) {
	t.Helper()
	backups, archive := slices.Clone(r.info), []line{}
	if r.passphrase != "" {
		backups = append(backups, line{"cipher", "cipher-pass", quoted(r.secret("manifests"))})
		archive = append(archive, line{"cipher", "cipher-pass", quoted(r.secret("wal"))})
	}
	backups = append(backups, line{"db", "db-id", "1"}, line{"db:history", "1", fmt.Sprintf(`{"db-catalog-version":202209061,"db-system-id":%d,"db-version":"15"}`, uint64(system))})
	archive = append(archive, line{"db", "db-id", "1"}, line{"db:history", "1", fmt.Sprintf(`{"db-id":%d,"db-version":"15"}`, uint64(system))})
	for _, copy := range []string{"", ".copy"} {
		r.put(t, "backup/"+stanza+"/backup.info"+copy, encrypt(r.passphrase, false, document(backups...)))
		r.put(t, "archive/"+stanza+"/archive.info"+copy, encrypt(r.passphrase, false, document(archive...)))
	}
}

// cut stores the blocks of content that differ from those before, in super blocks, and behind them the map of all.
func (r *repository) cut(at *stored, content string, was *stored, reference int, random *rand.Rand) []byte {
	at.blockSize = 8192 * int64(1+random.IntN(2))
	if was != nil {
		at.blockSize = was.blockSize
	}
	super := int(at.blockSize) * (1 + random.IntN(4))
	var body, open []byte
	var members []int
	flush := func() {
		if len(members) == 0 {
			return
		}
		out := encrypt(r.secret("files"), true, squeeze(r.codec, true, open))
		for k, i := range members {
			at.blocks[i] = pgbackrest.NewBlock(uint32(reference), uint32(at.bundle), int64(at.offset+len(body)), int64(len(out)), int64(len(open)), int64(k))
		}
		body = append(body, out...)
		open, members = nil, nil
	}
	for i := 0; i*int(at.blockSize) < len(content); i++ {
		part := []byte(content[i*int(at.blockSize) : min((i+1)*int(at.blockSize), len(content))])
		sum := sha1Of(part)[:6]
		at.sums = append(at.sums, sum)
		if was != nil && i < len(was.sums) && bytes.Equal(was.sums[i], sum) {
			at.blocks = append(at.blocks, was.blocks[i])
			continue
		}
		at.blocks = append(at.blocks, pgbackrest.Block{})
		members = append(members, i)
		if open = append(open, part...); len(open) >= super {
			flush()
		}
	}
	flush()
	m := encrypt(r.secret("files"), true, encodeMap(at.blocks, at.blockSize, func(i int) []byte { return at.sums[i] }))
	at.mapLength = len(m)
	return append(body, m...)
}

func jsonOf(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}
