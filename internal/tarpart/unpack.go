package tarpart

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"time"
)

// Header is what a member's tar header says, checked: Path stays below the directory, Size is not negative.
type Header struct {
	Path    string
	Type    Type
	Size    int64
	Mode    uint32
	ModTime time.Time // whole seconds in most archives
	UID     int       // of the owner where it was packed
	GID     int
	User    string // the owner's name there; "" where it was not kept
	Link    string
	Skipped string // set for kinds of members that cannot be restored: devices and the like
}

// ErrNoEnd says that a tar stream stops behind a member, without the blocks of zeros that end it. Something may be missing;
// or WAL-G cut the stream of a remote backup into parts, which it leaves without an end. It is an io.ErrUnexpectedEOF.
var ErrNoEnd = fmt.Errorf("the tar stream stops behind a member: %w", io.ErrUnexpectedEOF)

// Each calls do for every member of the tar stream r, with the member's content. do need not read all of it. Behind the
// last member there must be two blocks of zeros and only zeros may follow: without them the error is ErrNoEnd, after all
// members were done, and an end anywhere else is another io.ErrUnexpectedEOF.
func Each(r io.Reader, do func(h Header, content io.Reader) error) error {
	in := &counted{r: r}
	t := tar.NewReader(in)
	var end int64 // of the last member's blocks
	for {
		th, err := t.Next()
		if err == io.EOF {
			break
		}
		if err == nil && th.Size < 0 {
			err = tar.ErrHeader
		}
		if err != nil {
			return fmt.Errorf("read the next member: %w", err)
		}
		end = in.n + (th.Size+511)&^511
		path, err := Path(th.Name)
		if err != nil {
			return err
		}
		h := Header{Path: path, Size: th.Size, Mode: uint32(th.Mode) & 0o7777, ModTime: th.ModTime,
			UID: th.Uid, GID: th.Gid, User: th.Uname, Link: th.Linkname}
		switch th.Typeflag {
		case tar.TypeReg:
		case tar.TypeDir:
			h.Type = Dir
		case tar.TypeSymlink:
			h.Type = Symlink
		default:
			h.Skipped = fmt.Sprintf("tar type %q", th.Typeflag)
		}
		if err := do(h, t); err != nil {
			return err
		}
	}
	if in.n == end {
		return ErrNoEnd
	}
	if in.n < end+1024 { // package tar takes a stream without its end for a whole one
		return io.ErrUnexpectedEOF
	}
	return onlyZeros(r)
}

// counted counts the bytes read.
type counted struct {
	r io.Reader
	n int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// onlyZeros reads r to its end and refuses anything but zeros.
func onlyZeros(r io.Reader) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		for _, c := range buf[:n] {
			if c != 0 {
				return errors.New("there are other bytes than zeros behind the end of the tar stream")
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// First returns the header of the first member of the tar stream r.
func First(r io.Reader) (Header, error) {
	var first Header
	enough := errors.New("enough")
	err := Each(r, func(h Header, _ io.Reader) error {
		first = h
		return enough
	})
	if errors.Is(err, enough) {
		return first, nil
	}
	if err == nil {
		err = errors.New("the tar stream is empty")
	}
	return Header{}, err
}
