package archive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"

	"holdfast/internal/tarpart"
)

// ErrNoFileList says that a backup has no list of its members and need not have one: it is of WAL-E or of an early WAL-G, or
// was taken with --without-files-metadata.
var ErrNoFileList = errors.New("the backup has no list of its files")

// ListedFile is what a backup's list says of a member.
type ListedFile struct {
	Path        string // from the data directory, as in tarpart.Member
	ModTime     time.Time
	Size        int64 // bytes of the whole file; UnknownSize where the list does not say, as WAL-G's
	Bare        bool  // its name has no leading slash, as in WAL-G's backups over the wire
	Incremented bool  // the part holds the increment of the file, see package increment
	Skipped     bool  // no part holds anything: the file is as in the parent
}

// UnknownSize is the size of a file of which the list does not say it.
const UnknownSize = -1

// FileListVisitor takes what a list says, in the order of the document. What is nil is not called.
type FileListVisitor struct {
	File   func(ListedFile) error
	Member func(part, path string) error // the object part, by its base name, was to hold the member path
}

// ReadFileList reads which members a backup consists of: files_metadata.json, or what sentinels before WAL-G 1.1.1 have of it.
// It may be larger than memory, and is not held in it. ErrNoFileList where there is none; that a backup lacks its list
// which must have one is another error. An error of a visitor ends the reading and is returned.
func (a *Archive) ReadFileList(ctx context.Context, backup string, s *Sentinel, v FileListVisitor) error {
	object := a.folder(backup) + "files_metadata.json"
	switch {
	case s.FilesEmbedded:
		object = a.sentinelName(backup)
	case s.FilesMetadataDisabled:
		return ErrNoFileList
	}
	body, err := a.store.Open(ctx, object)
	if errors.Is(err, fs.ErrNotExist) {
		if s.Version < 2 {
			return ErrNoFileList
		}
		return notExist("backup %s cannot be restored without its list of files, %s", backup, object)
	}
	if err != nil {
		return err
	}
	defer body.Close() // only read
	if err := readFileList(body, v); err != nil {
		return fmt.Errorf("read %s: %w", object, err)
	}
	return nil
}

func readFileList(r io.Reader, v FileListVisitor) error {
	d := newDocument(r)
	if err := d.enter('{'); err != nil {
		return err
	}
	listed := false
	for {
		key, more, err := d.key()
		if err != nil {
			return err
		}
		if !more {
			break
		}
		switch key {
		case "Files":
			listed = true
			err = d.files(v)
		case "TarFileSets":
			err = d.parts(v)
		default:
			_, err = d.pass()
		}
		if err != nil {
			return err
		}
	}
	if !listed {
		return errors.New(`it has no "Files"`)
	}
	return d.end()
}

// files reads the value of "Files".
func (d *document) files(v FileListVisitor) error {
	if err := d.enter('{'); err != nil {
		return err
	}
	for {
		name, more, err := d.key()
		if err != nil || !more {
			return err
		}
		var e struct {
			IsIncremented, IsSkipped *bool
			MTime                    json.RawMessage
			HoldfastSize             *int64
		}
		if err := d.value(&e); err != nil {
			return fmt.Errorf("%.200q: %w", name, err)
		}
		f := ListedFile{Bare: !strings.HasPrefix(name, "/"), Size: UnknownSize}
		if e.HoldfastSize != nil && *e.HoldfastSize >= 0 {
			f.Size = *e.HoldfastSize
		}
		if json.Unmarshal(e.MTime, &f.ModTime) != nil {
			f.ModTime = time.Time{} // nothing depends on it that could not do without
		}
		if f.Path, err = tarpart.Path(name); err != nil {
			return err
		}
		// A document has no checksum. That both are always there tells some damage.
		if e.IsIncremented == nil || e.IsSkipped == nil {
			return fmt.Errorf("what it says of %.200q lacks IsIncremented or IsSkipped", name)
		}
		if f.Incremented, f.Skipped = *e.IsIncremented, *e.IsSkipped; f.Incremented && f.Skipped {
			return fmt.Errorf("it has %.200q as incremented and as skipped", name)
		}
		if v.File == nil {
			continue
		}
		if err := v.File(f); err != nil {
			return err
		}
	}
}

// parts reads the value of "TarFileSets".
func (d *document) parts(v FileListVisitor) error {
	if null, err := d.begin('{'); err != nil || null {
		return err
	}
	for {
		part, more, err := d.key()
		if err != nil || !more {
			return err
		}
		if part == "" || path.Base(part) != part {
			return fmt.Errorf("%.200q is not the name of a part", part)
		}
		null, err := d.begin('[')
		if err != nil {
			return err
		}
		for !null && d.dec.More() {
			var name string
			if err := d.value(&name); err != nil {
				return err
			}
			p, err := tarpart.Path(name)
			if err == nil && v.Member != nil {
				err = v.Member(part, p)
			}
			if err != nil {
				return err
			}
		}
		if !null {
			if err := d.leave(']'); err != nil {
				return err
			}
		}
	}
}

const (
	// maxValue bounds a name or a value that is held in memory, in bytes: what a list says of a file may have all its corrupt
	// blocks, 131072 of them.
	maxValue = 8 << 20
	// maxDepth bounds how deep values that are passed over are nested.
	maxDepth = 1000
)

// A document reads one JSON object piece by piece. What it holds in memory is bounded by maxValue, whatever the object's size.
type document struct {
	in  bounded
	dec *json.Decoder
}

func newDocument(r io.Reader) *document {
	d := &document{in: bounded{r: r}}
	d.dec = json.NewDecoder(&d.in)
	d.dec.UseNumber()
	d.in.at = d.dec.InputOffset
	return d
}

// bounded reads at most maxValue and what the decoder reads ahead beyond where the decoder is.
type bounded struct {
	r    io.Reader
	at   func() int64
	read int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.read-b.at() > 2*maxValue {
		return 0, fmt.Errorf("a value has more than %d bytes", maxValue)
	}
	n, err := b.r.Read(p[:min(len(p), maxValue)])
	b.read += int64(n)
	return n, err
}

// token is the next one; the end of the source is an early one.
func (d *document) token() (json.Token, error) {
	t, err := d.dec.Token()
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return t, err
}

// begin reads the bracket that opens an object or an array, or null.
func (d *document) begin(bracket json.Delim) (null bool, err error) {
	t, err := d.token()
	if err == nil && t != nil && t != bracket {
		err = fmt.Errorf("there is %.20v instead of %v", t, bracket)
	}
	return t == nil, err
}

// enter reads the bracket that opens an object.
func (d *document) enter(bracket json.Delim) error {
	null, err := d.begin(bracket)
	if err == nil && null {
		err = fmt.Errorf("there is null instead of %v", bracket)
	}
	return err
}

// leave reads the bracket that closes an array.
func (d *document) leave(bracket json.Delim) error {
	t, err := d.token()
	if err == nil && t != bracket {
		err = fmt.Errorf("there is %.20v instead of %v", t, bracket)
	}
	return err
}

// key reads the name of an object's next member; more is false behind the last, whose bracket is read then.
func (d *document) key() (name string, more bool, err error) {
	t, err := d.token()
	if err != nil || t == json.Delim('}') {
		return "", false, err
	}
	name, _ = t.(string) // the decoder allows nothing else
	return name, true, nil
}

// value decodes the next value.
func (d *document) value(v any) error {
	err := d.dec.Decode(v)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// pass passes over the next value and says whether it is null.
func (d *document) pass() (null bool, err error) {
	for depth := 0; ; {
		t, err := d.token()
		if err != nil {
			return false, err
		}
		switch t {
		case json.Delim('{'), json.Delim('['):
			if depth++; depth > maxDepth {
				return false, fmt.Errorf("values are nested more than %d deep", maxDepth)
			}
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth == 0 {
			return t == nil, nil
		}
	}
}

// end makes sure that nothing follows.
func (d *document) end() error {
	if t, err := d.dec.Token(); err != io.EOF {
		if err == nil {
			err = fmt.Errorf("there is %.20v behind its end", t)
		}
		return err
	}
	return nil
}
