package chain

import (
	"cmp"
	"os"
	"sync"

	"github.com/RoaringBitmap/roaring/v2"
)

// Sets keeps sets of blocks, known by numbers. Together they can be larger than the memory there is, 16 KiB for each GiB of a
// cluster, so that some of them are in a file. It may be used by several goroutines.
type Sets struct {
	Memory int64 // bytes that are kept in memory; 0 means 32 MiB
	// File makes the file once it is needed; Close closes it. It should be one without a name, that goes with the process.
	File func() (*os.File, error)

	mu     sync.Mutex
	memory []byte // the first Memory bytes
	file   *os.File
	end    int64
	at     []place
}

// place is where a set is: in memory, or from Memory on in the file.
type place struct {
	offset       int64
	length, room uint32
}

// Put keeps a set: a new one for number 0, else in the place of the one of that number. It returns the number.
func (s *Sets) Put(number uint32, set *roaring.Bitmap) (uint32, error) {
	set.RunOptimize()
	b, err := set.ToBytes()
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Memory = cmp.Or(s.Memory, 32<<20)
	if number == 0 {
		s.at = append(s.at, place{})
		number = uint32(len(s.at))
	}
	p := &s.at[number-1]
	if uint32(len(b)) > p.room {
		if s.end < s.Memory && s.end+int64(len(b)) > s.Memory {
			s.end = s.Memory
		}
		p.offset, p.room = s.end, uint32(len(b))
		s.end += int64(len(b))
	}
	p.length = uint32(len(b))
	if p.offset < s.Memory {
		if grow := p.offset + int64(p.room) - int64(len(s.memory)); grow > 0 {
			s.memory = append(s.memory, make([]byte, grow)...)
		}
		copy(s.memory[p.offset:], b)
		return number, nil
	}
	if s.file == nil {
		if s.file, err = s.File(); err != nil {
			return 0, err
		}
	}
	_, err = s.file.WriteAt(b, p.offset-s.Memory)
	return number, err
}

// Get returns the set of that number.
func (s *Sets) Get(number uint32) (*roaring.Bitmap, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.at[number-1]
	b := make([]byte, p.length)
	if p.offset < s.Memory {
		copy(b, s.memory[p.offset:])
	} else if _, err := s.file.ReadAt(b, p.offset-s.Memory); err != nil {
		return nil, err
	}
	set := roaring.New()
	return set, set.UnmarshalBinary(b)
}

// Close gives back what the sets took. They are of no use any more.
func (s *Sets) Close() {
	if s.file != nil {
		s.file.Close() // what is in it does not matter any more
	}
	s.memory, s.at = nil, nil
}

// Unnamed makes a file in the system's directory for temporary ones that no name leads to: for Sets.
func Unnamed() (*os.File, error) {
	f, err := os.CreateTemp("", "holdfast-sets-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close() // nothing was written
		return nil, err
	}
	return f, nil
}
