package restore

import (
	"errors"
	"io/fs"
	"os"
	"sync"

	"github.com/RoaringBitmap/roaring/v2"
)

// owedName is a file in the data directory while deltas are restored. It has no name for longer than a moment.
const owedName = "holdfast_restore.owed"

// sets keeps, for each file that was begun with an increment, the blocks that older backups owe it. Together they can be
// larger than the memory there is: 16 KiB for each GiB of the cluster. So they are in a file, which is not seen and goes with
// the process.
type sets struct {
	root *os.Root

	mu   sync.Mutex
	file *os.File // nil until something is kept
	end  int64
	at   []place
}

// place is where a set is in the file.
type place struct {
	offset       int64
	length, room uint32
}

// put keeps a set: a new one for number 0, else in the place of the one of that number. It returns the number.
func (s *sets) put(number uint32, set *roaring.Bitmap) (uint32, error) {
	set.RunOptimize()
	b, err := set.ToBytes()
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	if number == 0 {
		s.at = append(s.at, place{})
		number = uint32(len(s.at))
	}
	p := &s.at[number-1]
	if uint32(len(b)) > p.room {
		p.offset, p.room = s.end, uint32(len(b))
		s.end += int64(len(b))
	}
	p.length = uint32(len(b))
	offset := p.offset
	if s.file == nil {
		s.file, err = hidden(s.root)
	}
	f := s.file
	s.mu.Unlock()
	if err == nil {
		_, err = f.WriteAt(b, offset)
	}
	return number, err
}

// get returns the set of that number.
func (s *sets) get(number uint32) (*roaring.Bitmap, error) {
	s.mu.Lock()
	p, f := s.at[number-1], s.file
	s.mu.Unlock()
	b := make([]byte, p.length)
	if _, err := f.ReadAt(b, p.offset); err != nil {
		return nil, err
	}
	set := roaring.New()
	return set, set.UnmarshalBinary(b)
}

func (s *sets) close() {
	if s.file != nil {
		s.file.Close() // what is in it does not matter any more
	}
}

// hidden makes a file that no name leads to.
func hidden(root *os.Root) (*os.File, error) {
	if err := root.Remove(owedName); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := root.OpenFile(owedName, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := root.Remove(owedName); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
