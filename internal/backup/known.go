package backup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"math"
	"sort"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/tarpart"
)

// known is what the parent backup knows of its files, by 48 bytes a file whatever the length of names: a million files cost 48 MB.
// Files are known by 128 bits of a keyed hash, which nobody can make collide.
type known struct {
	seeds  [2]maphash.Seed
	blocks [][]knownFile // ascending by hash once sorted; each but the last has knownBlock, so that none is ever copied to grow
	len    int
	bytes  int64 // of all files of known size
}

// knownFile is a file of the parent. What is not known of it is zero, and for size unknownSize.
type knownFile struct {
	hash     [2]uint64
	size     int64 // bytes of the whole file
	inode    uint64
	modified int64 // nanoseconds since 1970
	changed  int64 // the same
}

const (
	knownBlock  = 1 << 15
	unknownSize = archive.UnknownSize
)

func newKnown() *known { return &known{seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}} }

func (k *known) of(i int) *knownFile { return &k.blocks[i/knownBlock][i%knownBlock] }

func (k *known) hash(path string) [2]uint64 {
	return [2]uint64{maphash.String(k.seeds[0], path), maphash.String(k.seeds[1], path)}
}

func (k *known) add(path string, f knownFile) {
	f.hash = k.hash(path)
	if k.len%knownBlock == 0 {
		k.blocks = append(k.blocks, make([]knownFile, knownBlock))
	}
	*k.of(k.len) = f
	k.len++
	if f.size > 0 {
		k.bytes += min(f.size, math.MaxInt64-k.bytes)
	}
}

// addMember enters a file as a manifest has it.
func (k *known) addMember(m *tarpart.Member) {
	f := knownFile{size: m.Total(), inode: m.Inode, modified: nanoseconds(m.ModTime), changed: nanoseconds(m.Changed)}
	k.add(m.Path, f)
}

// nanoseconds returns t as nanoseconds since 1970, 0 for what is none or cannot be said so.
func nanoseconds(t time.Time) int64 {
	if t.Year() < 1971 || t.Year() > 2260 {
		return 0
	}
	return t.UnixNano()
}

// byHash sorts known.
type byHash struct{ *known }

func (k byHash) Len() int           { return k.len }
func (k byHash) Less(i, j int) bool { return compareHash(k.of(i).hash, k.of(j).hash) < 0 }
func (k byHash) Swap(i, j int)      { *k.of(i), *k.of(j) = *k.of(j), *k.of(i) }

func compareHash(x, y [2]uint64) int { return cmp.Or(cmp.Compare(x[0], y[0]), cmp.Compare(x[1], y[1])) }

// sort makes find work once all files are entered. A file that was entered twice is an error.
func (k *known) sort() error {
	sort.Sort(byHash{k})
	for i := 1; i < k.len; i++ {
		if k.of(i).hash == k.of(i-1).hash {
			return errors.New("its list names a file twice")
		}
	}
	return nil
}

// find returns what is known of a file, nil where the parent does not have it.
func (k *known) find(path string) *knownFile {
	h := k.hash(path)
	i := sort.Search(k.len, func(i int) bool { return compareHash(k.of(i).hash, h) >= 0 })
	if i == k.len || k.of(i).hash != h {
		return nil
	}
	return k.of(i)
}

// readKnown reads what the backup b knows of its files.
func readKnown(ctx context.Context, a *archive.Archive, b *catalog.Backup) (*known, error) {
	k := newKnown()
	if err := eachFile(ctx, a, b, func(m *tarpart.Member) error { k.addMember(m); return nil }); err != nil {
		return nil, err
	}
	return k, k.sort()
}

// eachFile calls do for each file of the backup b: from its manifest, or where there is none, or this host cannot read what is encrypted,
// from the list of files, which has names, sizes and times, of backups by WAL-G without sizes: then they are unknownSize.
func eachFile(ctx context.Context, a *archive.Archive, b *catalog.Backup, do func(*tarpart.Member) error) error {
	if !a.WriteOnly() {
		if err := eachInManifest(ctx, a, b, do); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return a.ReadFileList(ctx, b.Name, b.Sentinel, archive.FileListVisitor{File: func(f archive.ListedFile) error {
		if f.Bare {
			return errors.New("it was taken over the wire by WAL-G, and nothing can be based on such a one")
		}
		return do(&tarpart.Member{Path: f.Path, Size: f.Size, ModTime: f.ModTime})
	}})
}

// eachInManifest is eachFile by the manifest, and makes sure that it is the one the backup was made with.
func eachInManifest(ctx context.Context, a *archive.Archive, b *catalog.Backup, do func(*tarpart.Member) error) error {
	m, err := a.OpenManifest(ctx, b.Name)
	if err != nil {
		return err
	}
	defer m.Close() // only read
	files := func(members []tarpart.Member) error {
		for i := range members {
			if members[i].Type == tarpart.File {
				if err := do(&members[i]); err != nil {
					return err
				}
			}
		}
		return nil
	}
	for {
		p, err := m.Next()
		if err == io.EOF {
			break
		}
		if err == nil {
			err = files(p.Members)
		}
		if err != nil {
			return err
		}
	}
	for m.Header.Unchanged > 0 {
		same, err := m.NextUnchanged()
		if err == io.EOF {
			break
		}
		if err == nil {
			err = files(same)
		}
		if err != nil {
			return err
		}
	}
	if want := b.Sentinel.Manifest; want != "" && m.Sum() != want {
		return fmt.Errorf("the manifest of %s is not the one it was made with", b.Name)
	}
	return nil
}
