package pgbackrest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
)

// format is the one repository format there is since pgBackRest 1.0 ("backrest-format").
const format = 5

const (
	maxLine = 16 << 20 // bytes of a line: an entry with its lists
	maxInfo = 8 << 30  // bytes of a document: the manifest has a line of some 250 bytes per file
)

// errNoInfo says that something is not in pgBackRest's form.
var errNoInfo = errors.New("it is no section, and no key with a value in JSON")

// parseInfo reads a document of pgBackRest: sections of lines key=value, the values JSON. It calls visit for each value in their order, and
// returns an error unless the format is known and the checksum is right: SHA-1 of the whole as one JSON object of objects, the checksum left out.
// What was visited must not be relied on before it returned nil.
func parseInfo(r io.Reader, visit func(section, key string, value json.RawMessage) error) error {
	p := &infoParser{in: bufio.NewReaderSize(io.LimitReader(r, maxInfo), 64<<10), sum: sha1.New(), visit: visit}
	for {
		line, err := p.line()
		if err == nil {
			err = p.take(line)
		}
		switch {
		case err == io.EOF:
			return p.end()
		case err != nil && p.number > 0:
			return fmt.Errorf("line %d: %w", p.number, err)
		case err != nil:
			return err
		}
	}
}

type infoParser struct {
	in      *bufio.Reader
	sum     hash.Hash
	visit   func(section, key string, value json.RawMessage) error
	long    []byte // a line that does not fit in's buffer
	number  int
	section string
	open    bool // section has been entered in sum
	any     bool // some section has
	known   bool // the format is
	want    string
}

// line returns the next line without its end. It is good until the next call.
func (p *infoParser) line() ([]byte, error) {
	p.long = p.long[:0]
	for {
		b, err := p.in.ReadSlice('\n')
		if len(p.long)+len(b) > maxLine {
			return nil, fmt.Errorf("a line of more than %d bytes", maxLine)
		}
		switch {
		case err == bufio.ErrBufferFull:
			p.long = append(p.long, b...)
			continue
		case err == io.EOF && len(p.long)+len(b) > 0:
			err = nil
		}
		if err != nil {
			return nil, err
		}
		p.number++
		if len(p.long) > 0 {
			p.long = append(p.long, b...)
			b = p.long
		}
		return bytes.TrimSuffix(b, []byte("\n")), nil
	}
}

// take enters a line.
func (p *infoParser) take(line []byte) error {
	if len(line) == 0 || line[0] == '#' {
		return nil
	}
	if line[0] == '[' && line[len(line)-1] == ']' {
		p.section, p.open = string(line[1:len(line)-1]), false
		return nil
	}
	if p.section == "" {
		return errNoInfo
	}
	key, value, err := splitLine(line)
	if err != nil {
		return err
	}
	if p.section == "backrest" && key == "backrest-checksum" {
		return json.Unmarshal(value, &p.want)
	}
	p.add(key, value)
	if p.section == "backrest" {
		var n int
		if key != "backrest-format" {
			return nil
		}
		if err := json.Unmarshal(value, &n); err != nil || n != format {
			return fmt.Errorf("the repository has format %.20s, this release reads %d", value, format)
		}
		p.known = true
		return nil
	}
	return p.visit(p.section, key, value)
}

// splitLine divides a line at the first = behind which there is JSON: names of files may hold one too.
func splitLine(line []byte) (key string, value json.RawMessage, err error) {
	for at, tried := 0, 0; tried < 64; tried++ {
		i := bytes.IndexByte(line[at:], '=')
		if i < 0 {
			break
		}
		at += i + 1
		if json.Valid(line[at:]) && at > 1 {
			return string(line[:at-1]), line[at:], nil
		}
	}
	return "", nil, errNoInfo
}

// add enters a value in the checksum.
func (p *infoParser) add(key string, value []byte) {
	switch {
	case p.open:
		p.write(",")
	case p.any:
		p.write("},")
		fallthrough
	default:
		if !p.any {
			p.write("{")
		}
		p.quote(p.section)
		p.write(":{")
	}
	p.open, p.any = true, true
	p.quote(key)
	p.write(":")
	p.sum.Write(value) // never fails
}

func (p *infoParser) write(s string) { io.WriteString(p.sum, s) } // never fails

// quote enters a string as pgBackRest writes it in JSON.
func (p *infoParser) quote(s string) {
	b := make([]byte, 0, len(s)+2)
	b = append(b, '"')
	for i := range len(s) {
		if j := bytes.IndexByte([]byte("\"\\\b\f\n\r\t"), s[i]); j >= 0 {
			b = append(b, '\\', `"\bfnrt`[j])
		} else {
			b = append(b, s[i])
		}
	}
	p.sum.Write(append(b, '"')) // never fails
}

// end judges the document.
func (p *infoParser) end() error {
	if p.any {
		p.write("}}")
	}
	switch got := hex.EncodeToString(p.sum.Sum(nil)); {
	case !p.known:
		return errors.New("it does not say of which format it is")
	case p.want == "":
		return errors.New("it ends without its checksum")
	case got != p.want:
		return fmt.Errorf("its checksum is %s, and it says %.50q", got, p.want)
	}
	return nil
}

// readInfo reads the document name, or where that is missing or damaged its copy. begin is called before each attempt.
func (r *Repository) readInfo(ctx context.Context, name, passphrase string, begin func(), visit func(section, key string, value json.RawMessage) error) error {
	var errs []error
	for _, object := range []string{name, name + ".copy"} {
		begin()
		err := r.readDocument(ctx, object, passphrase, visit)
		if err == nil {
			return nil
		}
		if errs = append(errs, err); ctx.Err() != nil {
			break
		}
	}
	if errors.Is(errs[0], fs.ErrNotExist) && !errors.Is(errs[len(errs)-1], fs.ErrNotExist) {
		return errs[len(errs)-1]
	}
	return errs[0]
}

// readDocument reads one of them.
func (r *Repository) readDocument(ctx context.Context, object, passphrase string, visit func(section, key string, value json.RawMessage) error) error {
	body, err := r.store.Open(ctx, object)
	if err != nil {
		return err
	}
	defer body.Close() // only read
	var in io.Reader = body
	if passphrase != "" {
		in = newDecrypter(body, passphrase, false)
	} else {
		peek := bufio.NewReader(body)
		if head, err := peek.Peek(len(saltMagic)); err == nil && string(head) == saltMagic {
			return &EncryptedError{object}
		}
		in = peek
	}
	if err := parseInfo(in, visit); err != nil {
		if passphrase != "" && errors.Is(err, errNoInfo) { // a long one is parsed before its padding is seen
			err = fmt.Errorf("%w: %w", errCipher, err)
		}
		return fmt.Errorf("read %s: %w", object, err)
	}
	return nil
}

// EncryptedError says that the repository is encrypted, and no passphrase was given.
type EncryptedError struct{ Object string }

func (e *EncryptedError) Error() string {
	return e.Object + " is encrypted, and there is no passphrase"
}

// Hint says how to give one.
func (e *EncryptedError) Hint() string {
	return "set repo1-cipher-type=aes-256-cbc and repo1-cipher-pass in pgbackrest.conf, or PGBACKREST_REPO1_CIPHER_TYPE and PGBACKREST_REPO1_CIPHER_PASS"
}
