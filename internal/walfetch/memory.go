package walfetch

import (
	"os"
	"sync"

	"holdfast/internal/fileid"
)

// Memory is what a process that stays knows of the segments that it fetched ahead, from one archive: they need not be read again to be trusted.
// Nobody else writes to where they lie, and no crash of the machine came between. The zero value is ready to use.
type Memory struct {
	mu    sync.Mutex
	files map[string]fileid.ID // by path
}

// maxMemory bounds how many files are remembered. What is forgotten is read.
const maxMemory = 4 * maxSegments

// rename renames f from one path to another, and remembers it there.
func (m *Memory) rename(f *os.File, from, to string) error {
	if m == nil {
		return os.Rename(from, to)
	}
	m.mu.Lock()
	defer m.mu.Unlock() // who finds the file finds it remembered
	if err := os.Rename(from, to); err != nil {
		return err
	}
	if m.files == nil || len(m.files) >= maxMemory {
		m.files = map[string]fileid.ID{}
	}
	if id, err := fileid.Of(f); err == nil {
		m.files[to] = id
	}
	return nil
}

// take forgets what is remembered for path, and returns the length of the file, 0 unless f is what is remembered.
func (m *Memory) take(path string, f *os.File) int64 {
	if m == nil {
		return 0
	}
	m.mu.Lock()
	want, ok := m.files[path]
	delete(m.files, path)
	m.mu.Unlock()
	if id, err := fileid.Of(f); !ok || err != nil || id != want {
		return 0
	}
	return want.Size()
}
