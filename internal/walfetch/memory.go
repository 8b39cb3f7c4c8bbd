package walfetch

import (
	"os"
	"sync"

	"holdfast/internal/fileid"
)

// Memory is what a process that stays knows of the segments that it fetched ahead, from one archive: they need not be read again to be trusted.
// Nobody else writes to where they lie, and no crash of the machine came between. While Ahead runs in the process it is told by way of Memory what is asked for,
// and not by a file: to replace one makes ext4 write it to disk at once (auto_da_alloc), for which PostgreSQL would wait. The zero value is ready to use, for one
// directory.
type Memory struct {
	mu        sync.Mutex
	files     map[string]fileid.ID // by path
	following bool                 // Ahead runs in this process
	asked     string               // the segment that was asked for last, unless Ahead has heard of it; "" for none
}

// follow notes whether Ahead runs in this process, and wants to be told what is asked for.
func (m *Memory) follow(on bool) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.following, m.asked = on, ""
}

// ask tells Ahead that a segment is asked for, and reports whether it runs in this process.
func (m *Memory) ask(name string) bool {
	if m == nil {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.following {
		m.asked = name
	}
	return m.following
}

// heard returns what was asked for since it was called last; "" for nothing.
func (m *Memory) heard() (name string) {
	if m == nil {
		return ""
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	name, m.asked = m.asked, ""
	return name
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
