package failover

import (
	"context"
	"errors"
	"io/fs"
	"strings"

	"holdfast/internal/store"
)

const (
	walDir         = "wal_005/"
	sentinelSuffix = "_backup_stop_sentinel.json"
	markerName     = "push.json"             // in the folder of a backup that is being written
	ownerName      = "holdfast/cluster.json" // whose archive it is
)

// backupDirs hold backups, each a folder <name>/ and a sentinel <name> + sentinelSuffix.
var backupDirs = [...]string{"basebackups_005/", "catchup_005/"}

// folderOf returns the backup's folder that an object or a directory lies in or is, such as "basebackups_005/base_X/"; "" if in none.
func folderOf(name string) string {
	for _, dir := range backupDirs {
		if rest, ok := strings.CutPrefix(name, dir); ok {
			if i := strings.IndexByte(rest, '/'); i > 0 {
				return name[:len(dir)+i+1]
			}
		}
	}
	return ""
}

// folderOfSentinel returns the folder of the backup whose sentinel name is; "" if it is none.
func folderOfSentinel(name string) string {
	for _, dir := range backupDirs {
		if rest, ok := strings.CutPrefix(name, dir); ok {
			if backup, ok := strings.CutSuffix(rest, sentinelSuffix); ok && backup != "" && !strings.Contains(backup, "/") {
				return dir + backup + "/"
			}
		}
	}
	return ""
}

func sentinelOf(folder string) string { return strings.TrimSuffix(folder, "/") + sentinelSuffix }

// draft returns the member that this process is writing the backup of folder to.
func (s *Stores) draft(folder string) (int, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.drafts[folder]
	return i, ok
}

// bind makes a folder that of a draft in member i.
func (s *Stores) bind(folder string, i int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drafts[folder] = i
	delete(s.homes, folder)
}

// unbind forgets what is known of a folder.
func (s *Stores) unbind(folder string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.drafts, folder)
	delete(s.homes, folder)
}

// everywhere stands for all members where one could be named.
const everywhere = -1

// home returns the member in which what is below folder is to be found: that of our own draft, else that of the sentinel, else
// everywhere. known says that it was not asked for just now.
func (v view) home(ctx context.Context, folder string) (i int, known bool, err error) {
	v.mu.Lock()
	i, known = v.drafts[folder]
	if !known {
		i, known = v.homes[folder]
	}
	v.mu.Unlock()
	if known {
		return i, true, nil
	}
	i, err = v.find(ctx, folder)
	return i, false, err
}

// find looks for the sentinel of the backup in folder, and remembers where it is.
func (v view) find(ctx context.Context, folder string) (int, error) {
	i, err := v.stat(ctx, sentinelOf(folder))
	if err != nil {
		return everywhere, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if i == everywhere {
		delete(v.homes, folder)
		return everywhere, nil
	}
	if _, ours := v.drafts[folder]; !ours {
		v.homes[folder] = i
	}
	return i, nil
}

// stat returns the member that has name, everywhere where none has.
func (v view) stat(ctx context.Context, name string) (int, error) {
	i, err := v.ask(ctx, "stat", name, func(s store.Store) error {
		_, err := s.Stat(ctx, name)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return everywhere, nil
	}
	return i, err
}
