package restore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// markerName is a file in a data directory that is being restored. It is there from before the first file is written
// until pg_control is in place and all is durable.
const markerName = "holdfast_restore.json"

// marker says what is being restored.
type marker struct {
	Version     int          `json:"holdfast_restore"` // the form's: 1
	Backup      string       `json:"backup"`
	System      uint64       `json:"system_identifier"`
	Finished    time.Time    `json:"backup_finished"` // tells backups of one name apart
	Tablespaces []Tablespace `json:"tablespaces,omitempty"`
	Mask        string       `json:"mask,omitempty"`
	Delta       bool         `json:"delta,omitempty"` // it writes what differs, into a directory that was there
	Begun       time.Time    `json:"begun"`
}

// maxMarker bounds a marker file in bytes.
const maxMarker = 1 << 20

// errTorn says that a marker is not whole: the restore that placed it ended before it wrote anything else.
var errTorn = errors.New("the marker of a restore is not whole")

// readMarker reads the marker in dir; fs.ErrNotExist where there is none, errTorn where it is not whole.
func readMarker(dir string) (*marker, error) {
	return loadMarker(filepath.Join(dir, markerName), "is no marker of an interrupted restore that this release understands", "remove the directory's content and restore anew")
}

// loadMarker reads a marker. other and advice are for one that another release has left.
func loadMarker(path, other, advice string) (*marker, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	b, err := io.ReadAll(io.LimitReader(f, maxMarker))
	if err != nil {
		return nil, err
	}
	var m marker
	if json.Unmarshal(b, &m) != nil {
		return nil, errTorn
	}
	if m.Version != 1 {
		return nil, &RefusedError{path + " " + other, advice}
	}
	return &m, nil
}

func (p *Plan) marker() marker {
	return marker{Version: 1, Backup: p.Backup, System: p.systemIdentifier, Finished: p.Finished.UTC(), Tablespaces: p.Tablespaces, Mask: p.Mask, Delta: p.Delta != nil}
}

// continues returns nil where p may go on with what the marked restore did.
func (m *marker) continues(p *Plan) error {
	want := p.marker()
	if m.Delta {
		return &RefusedError{fmt.Sprintf("%s holds a restore of %s with --delta that was interrupted", p.Destination, m.Backup), "continue it with --delta"}
	}
	if m.Backup != want.Backup || m.System != want.System || !m.Finished.Equal(want.Finished) {
		return &RefusedError{
			fmt.Sprintf("the interrupted restore in %s is of backup %s, finished at %s", p.Destination, m.Backup, m.Finished.Format(time.RFC3339)),
			"resume with that backup, or remove the directory's content and restore anew",
		}
	}
	if m.Mask != want.Mask {
		return &RefusedError{
			fmt.Sprintf("the interrupted restore in %s had another mask, %q", p.Destination, m.Mask),
			"give the same mask, or remove the directory's content and restore anew",
		}
	}
	if !reflect.DeepEqual(m.Tablespaces, want.Tablespaces) {
		return &RefusedError{
			fmt.Sprintf("the interrupted restore in %s puts the tablespaces elsewhere", p.Destination),
			"give the same mapping, or remove the directories' content and restore anew",
		}
	}
	if _, err := os.Lstat(filepath.Join(p.Destination, "postmaster.pid")); err == nil {
		return &RefusedError{
			fmt.Sprintf("a PostgreSQL was started in %s: it holds postmaster.pid", p.Destination),
			"stop that server; remove the directory's content and restore anew",
		}
	}
	return nil
}

// placeMarker writes the marker durably, unless a whole one is there already, and locks it: a second restore into the directory
// is refused while this one runs. Closing the file ends the lock. One that is there is left as it is, so that a marker that is
// not whole is always the only thing in its directory. What changed since the plan was made is refused.
func (t *tree) placeMarker(p *Plan) (*os.File, error) {
	ended := &RefusedError{fmt.Sprintf("another restore into %s has just ended", p.Destination), "look whether it is what you want"}
	flags := os.O_RDWR
	if !p.continues {
		flags |= os.O_CREATE
	}
	f, err := t.data.OpenFile(markerName, flags, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ended
	}
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = &RefusedError{fmt.Sprintf("another restore into %s is running", p.Destination), "wait for it to end"}
	}
	if err == nil && !t.isMarker(f) {
		err = ended
	}
	if err == nil && !p.continues && p.Delta == nil {
		if err = p.stillEmpty(); err != nil {
			err = errors.Join(err, t.data.Remove(markerName))
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	was, err := io.ReadAll(io.LimitReader(f, maxMarker))
	switch whole := json.Unmarshal(was, &marker{}) == nil; {
	case err != nil:
	case !whole:
		err = p.writeMarker(f)
	case !p.continues && p.Delta != nil:
		err = &RefusedError{fmt.Sprintf("another restore into %s was interrupted meanwhile", p.Destination), "try again"}
	}
	if err == nil {
		err = syncPath(t.data, ".")
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// isMarker reports whether f is the marker that is in place now.
func (t *tree) isMarker(f *os.File) bool {
	there, err1 := t.data.Lstat(t.marker)
	ours, err2 := f.Stat()
	return err1 == nil && err2 == nil && os.SameFile(there, ours)
}

// stillEmpty refuses a destination that holds more than the marker and the tablespaces' directories.
func (p *Plan) stillEmpty() error {
	passed := []string{markerName}
	for _, ts := range p.Tablespaces {
		if inside, ok := strings.CutPrefix(ts.To, p.Destination+"/"); ok {
			first, _, _ := strings.Cut(inside, "/")
			passed = append(passed, first)
		}
	}
	empty, err := emptyDir(p.Destination, passed...)
	if err == nil && !empty {
		err = &RefusedError{fmt.Sprintf("the destination %s is not empty any more", p.Destination), "somebody else is using it: restore into another directory"}
	}
	return err
}

func (p *Plan) writeMarker(f *os.File) error {
	m := p.marker()
	m.Begun = time.Now().UTC()
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	if _, err := f.WriteAt(append(b, '\n'), 0); err != nil {
		return err
	}
	return f.Sync()
}

// removeMarker declares the restore finished.
func (t *tree) removeMarker() error {
	if err := t.data.Remove(t.marker); err != nil {
		return err
	}
	return syncPath(t.data, ".")
}
