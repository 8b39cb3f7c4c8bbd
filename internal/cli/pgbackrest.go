package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/config"
	"holdfast/internal/pg/control"
	"holdfast/internal/pgbackrest"
	"holdfast/internal/restore"
	"holdfast/internal/store"
	"holdfast/internal/store/meter"
	"holdfast/internal/store/retry"
	"holdfast/internal/store/throttle"
	"holdfast/internal/walfetch"
)

// theirs is what the commands below pgbackrest have in common.
type theirs struct {
	*app
	file, stanza string // flags
	number       int
}

func (a *app) pgbackrest() *cobra.Command {
	t := &theirs{app: a}
	cmd := &cobra.Command{
		Use:   "pgbackrest",
		Short: "List, restore and verify what pgBackRest stored, in place",
		Long: "Works on a repository of pgBackRest 2, where it is, and writes nothing to it: full, differential and incremental backups, with bundles and\n" +
			"block incrementals, compressed by any of its codecs, encrypted (aes-256-cbc) or not.\n\n" +
			"Where the repository is say, the first of these that does: pgBackRest's own options in the environment (PGBACKREST_REPO1_PATH and the like) or in\n" +
			"the file that --pgbackrest-config or PGBACKREST_CONFIG names; a storage prefix, as in WAL-G (WALG_S3_PREFIX=s3://bucket/repo); else\n" +
			"/etc/pgbackrest/pgbackrest.conf or /etc/pgbackrest.conf. How it is encrypted say pgBackRest's options. The stanza is PGBACKREST_STANZA, or main.",
		Example: "  holdfast pgbackrest backup-list\n" +
			"  holdfast pgbackrest backup-fetch /srv/copy --target-time '2026-05-06 09:08:09+02' --target-action promote\n" +
			"  WALG_FILE_PREFIX=/var/lib/pgbackrest holdfast pgbackrest --stanza demo verify all",
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return &exit{a.usage(cmd, &unknownError{"pgbackrest " + args[0], "`holdfast help pgbackrest` lists the commands"}), exitUnknown}
		},
	}
	f := cmd.PersistentFlags()
	f.StringVar(&t.file, "pgbackrest-config", "", "pgBackRest's configuration file")
	f.StringVar(&t.stanza, "stanza", "", "the stanza (default PGBACKREST_STANZA, else main)")
	f.IntVar(&t.number, "repo", 1, "number of the repository, where pgBackRest has several")
	cmd.AddCommand(t.backupList(), t.backupFetch(), t.walFetch(), t.walPrefetch(), t.walShow(), t.verify())
	return cmd
}

// place is a stanza of a repository that was found.
type place struct {
	*pgbackrest.Repository
	location string   // of the stanza
	before   []string // words of a command line that lead here again
	outside  []string // what leads here and is in the environment
}

// find reads pgBackRest's options, and opens the repository that they name.
func (t *theirs) find(ctx context.Context, s *config.Settings) (*place, error) {
	if t.number < 1 || t.number > 256 {
		return nil, fmt.Errorf("--repo %d: want the number of a repository, from 1", t.number)
	}
	var theirs pgbackrest.Settings
	theirs.ReadEnviron(t.env.Environ)
	p := &place{before: []string{"pgbackrest"}}
	named, files, err := t.files(&theirs)
	if err != nil {
		return nil, err
	}
	if named != "" {
		p.before = append(p.before, "--pgbackrest-config", named)
	}
	stanza := cmp.Or(t.stanza, s.Stanza)
	if stanza != "main" {
		p.before = append(p.before, "--stanza", stanza)
	}
	if t.number != 1 {
		p.before = append(p.before, "--repo", strconv.Itoa(t.number))
	}
	repo := theirs.Repo(stanza, t.number)
	p.outside = append(p.outside, repo.FromEnviron()...)
	for _, name := range []string{"CONFIG_PATH", "CONFIG_INCLUDE_PATH"} { // which no flag has
		if t.environ(name) != "" {
			p.outside = append(p.outside, pgbackrest.Environ+name)
		}
	}
	asked := repo.Named() && (named != "" || t.environ("CONFIG_PATH") != "" || repo.Source("path") == "environment" || repo.Source("type") == "environment")
	var st store.Store
	switch {
	case !asked && s.Storage.Location() != "":
		p.location = s.Location()
		p.outside = append(p.outside, outside(s)...)
		st, err = t.openStore(ctx, s, toRead)
	case !asked && files == 0:
		return nil, &advised{errors.New("nothing says where the repository is"),
			"set PGBACKREST_REPO1_PATH, name a file with --pgbackrest-config, or set a storage prefix such as WALG_FILE_PREFIX to the root of the repository"}
	default:
		st, p.location, err = t.open(ctx, s, repo)
	}
	if err != nil {
		return nil, err
	}
	passphrase, err := repo.Passphrase()
	if err != nil {
		return nil, err
	}
	p.Repository, err = pgbackrest.New(st, pgbackrest.Options{Stanza: stanza, Passphrase: passphrase, Location: p.location})
	p.location += ", stanza " + stanza
	t.log.Debug("the repository is " + p.location)
	return p, err
}

// environ returns one of pgBackRest's variables by what stands behind its prefix.
func (t *theirs) environ(name string) (value string) {
	for _, e := range t.env.Environ {
		if v, ok := strings.CutPrefix(e, pgbackrest.Environ+name+"="); ok {
			value = v
		}
	}
	return value
}

// maxConf bounds a configuration file in bytes.
const maxConf = 1 << 20

// files reads pgBackRest's configuration files, and returns which was asked for, "" for none, and how many there are.
func (t *theirs) files(theirs *pgbackrest.Settings) (named string, n int, err error) {
	named, includes := cmp.Or(t.file, t.environ("CONFIG")), t.environ("CONFIG_INCLUDE_PATH")
	var read []string
	var candidates []string
	if named != "" {
		if named, err = t.absolute(named); err != nil {
			return "", 0, err
		}
		candidates = []string{named}
	} else {
		candidates = []string{"/etc/pgbackrest/pgbackrest.conf", "/etc/pgbackrest.conf"}
		base := t.environ("CONFIG_PATH")
		if base != "" {
			candidates = []string{filepath.Join(base, "pgbackrest.conf")}
		}
		includes = cmp.Or(includes, filepath.Join(cmp.Or(base, "/etc/pgbackrest"), "conf.d"))
	}
	for _, name := range candidates {
		if named == "" && len(read) > 0 {
			break
		}
		if _, err := os.Stat(name); named == "" && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		read = append(read, name)
	}
	if includes != "" {
		more, _ := filepath.Glob(filepath.Join(includes, "*.conf")) // the pattern is one
		read = append(read, more...)
	}
	for _, name := range read {
		content, err := readFile(name, maxConf)
		if err == nil {
			err = theirs.ReadFile(name, content)
		}
		if err != nil {
			return "", 0, err
		}
	}
	return named, len(read), nil
}

// readFile reads a file of at most max bytes.
func readFile(name string, max int64) ([]byte, error) {
	info, err := os.Stat(name)
	if err == nil && (!info.Mode().IsRegular() || info.Size() > max) {
		err = fmt.Errorf("%s is no file of at most %d bytes", name, max)
	}
	if err != nil {
		return nil, err
	}
	return os.ReadFile(name)
}

// open opens the store that pgBackRest's options name.
func (t *theirs) open(ctx context.Context, s *config.Settings, r pgbackrest.Repo) (_ store.Store, location string, err error) {
	if err := r.Check(); err != nil {
		return nil, "", err
	}
	st := storageOf(s, r)
	var limit *throttle.Limit
	if s.NetworkRate > 0 {
		limit = throttle.New(s.NetworkRate)
	}
	bare, err := t.bareStore(ctx, s, &st, limit, 0)
	if err != nil {
		return nil, "", fmt.Errorf("open the repository at %s: %w", st.Location(), err)
	}
	opened := meter.New(bare, &t.traffic)
	if st.Dir != "" {
		if limit != nil {
			opened = limit.Store(opened)
		}
		opened = retry.New(opened, retry.Options{Logger: t.log})
		t.dirs = append(t.dirs, st.Dir)
	}
	return opened, st.Location(), nil
}

// storageOf says in our terms where a repository is. What pgBackRest has no option for is as the settings have it.
func storageOf(s *config.Settings, r pgbackrest.Repo) config.Storage {
	var st config.Storage
	st.Name = "repository"
	port := r.Get("storage-port")
	endpoint := func(host string) string {
		host = cmp.Or(r.Get("storage-host"), host)
		if port != "443" {
			host = net.JoinHostPort(host, port)
		}
		return "https://" + host
	}
	below := strings.Trim(r.Get("path"), "/")
	switch r.Get("type") {
	case "posix", "cifs":
		st.Dir = r.Get("path")
	case "s3":
		st.S3 = s.Storage.S3
		b := &st.S3
		b.Bucket, b.Path, b.Region = r.Get("s3-bucket"), below, r.Get("s3-region")
		b.Endpoint, b.PathStyle = endpoint(r.Get("s3-endpoint")), r.Get("s3-uri-style") == "path"
		b.CACert, b.RoleARN = cmp.Or(r.Get("storage-ca-file"), b.CACert), ""
		if r.Get("s3-key-type") == "shared" {
			b.AccessKeyID, b.SecretAccessKey, b.SessionToken = r.Get("s3-key"), r.Get("s3-key-secret"), r.Get("s3-token")
		}
	case "gcs":
		st.GCS = s.Storage.GCS
		g := &st.GCS
		g.Bucket, g.Path, g.Raw = r.Get("gcs-bucket"), below, false
		if r.Get("gcs-key-type") == "service" {
			g.CredentialsFile = r.Get("gcs-key")
		}
		if host := r.Get("gcs-endpoint"); host != "storage.googleapis.com" || r.Get("storage-host") != "" {
			g.Endpoint = endpoint(host)
		}
	case "azure":
		st.Azure = s.Storage.Azure
		z := &st.Azure
		z.Container, z.Path, z.Account = r.Get("azure-container"), below, r.Get("azure-account")
		z.AccessKey, z.SASToken, z.CACert = "", "", cmp.Or(r.Get("storage-ca-file"), z.CACert)
		switch r.Get("azure-key-type") {
		case "shared":
			z.AccessKey = r.Get("azure-key")
		case "sas":
			z.SASToken = strings.TrimPrefix(r.Get("azure-key"), "?")
		}
		host := r.Get("azure-endpoint")
		z.EndpointSuffix = strings.TrimPrefix(host, "blob.")
		if r.Get("azure-uri-style") == "path" {
			z.Endpoint = endpoint(host) + "/" + z.Account
		} else if r.Get("storage-host") != "" || port != "443" {
			z.Endpoint = endpoint(z.Account + "." + host)
		}
	case "sftp":
		h := &st.SFTP
		h.Host, h.Dir, h.User = r.Get("sftp-host"), r.Get("path"), r.Get("sftp-host-user")
		h.Port, _ = strconv.Atoi(r.Get("sftp-host-port")) // 0 is the usual one
		h.PrivateKeyFile, h.Passphrase = r.Get("sftp-private-key-file"), r.Get("sftp-private-key-passphrase")
		h.KnownHosts, h.AgentSocket, h.Retries = r.Get("sftp-known-host"), s.Storage.SFTP.AgentSocket, s.Storage.SFTP.Retries
	}
	return st
}

// start reads the settings and finds the repository.
func (t *theirs) start(cmd *cobra.Command) (*config.Settings, *place, error) {
	s, err := t.load(cmd)
	if err != nil {
		return nil, nil, err
	}
	p, err := t.find(cmd.Context(), s)
	return s, p, err
}

// found is a backup of a repository, and the WAL of its cluster.
type found struct {
	info   *pgbackrest.Info
	backup *pgbackrest.Backup
	choice catalog.Choice
	wal    *archive.Archive
}

// choose finds the backup for a target. A stanza may have been for several clusters, each the successor of the one before by pg_upgrade: a target belongs to the
// newest of them that had a backup by then.
func (t *theirs) choose(ctx context.Context, s *config.Settings, p *place, name string, target catalog.Target) (*found, error) {
	info, err := p.Info(ctx)
	if err != nil {
		return nil, err
	}
	if len(info.Backups) == 0 {
		return nil, &catalog.NoBackupError{Asked: cmp.Or(name, "LATEST"), Reason: "the stanza has no backups", Advice: "pgBackRest takes them: pgbackrest backup"}
	}
	if name == "" && target.Kind == catalog.None {
		name = "LATEST"
	}
	walInfo, err := p.WALInfo(ctx)
	if err != nil {
		return nil, err
	}
	clusters := slices.Clone(info.Clusters)
	slices.Reverse(clusters)
	if name != "" && (name != "LATEST" || target.Kind == catalog.None) {
		b, err := info.Find(name)
		if err != nil {
			return nil, &catalog.NoBackupError{Asked: name, Reason: "the stanza has no backup of that label", Advice: "see `holdfast pgbackrest backup-list`"}
		}
		name, clusters = b.Label, []pgbackrest.Cluster{info.Cluster(b)}
		if b.Offline() {
			if target.Kind != catalog.None {
				return nil, &catalog.NoBackupError{Asked: target.String(), Reason: name + " was taken while the server was stopped, and which WAL comes behind it it does not say",
					Advice: "restore it without a target, or leave the name away"}
			}
			entry := info.Entry(b)
			return &found{info, b, catalog.Choice{Backup: entry, Chain: []*catalog.Backup{entry}, Path: catalog.Path{{}}}, p.WAL(walInfo, clusters[0])}, nil
		}
	} else if name == "LATEST" {
		name = ""
	}
	var first error
	for _, c := range clusters {
		if !slices.ContainsFunc(info.Backups, func(b pgbackrest.Backup) bool { return b.ClusterID == c.ID && !b.Offline() }) {
			continue
		}
		dir, err := walInfo.Match(c)
		if err != nil {
			return nil, err
		}
		wal := p.WAL(walInfo, dir)
		all, err := info.Catalog(ctx, wal, c)
		if err != nil {
			return nil, err
		}
		if err := t.findCurrent(ctx, s, &history{archive: wal, catalog: all}, target); err != nil {
			return nil, err
		}
		choice, err := all.Choose(name, target)
		if err != nil && !precedes(target, all) {
			return nil, err // an older cluster is not what was asked for
		}
		if err != nil {
			first = cmp.Or(first, err)
			continue
		}
		if c != clusters[0] {
			t.log.Warn(fmt.Sprintf("the target is of a cluster before the current one, with system identifier %d, of PostgreSQL %s: the current one has no backup for it",
				c.SystemIdentifier, c.Version))
		}
		t.tellTimeline(choice)
		b, err := info.Find(choice.Backup.Name)
		return &found{info, b, choice, wal}, err
	}
	if first == nil {
		first = &catalog.NoBackupError{Asked: target.String(), Reason: "all backups were taken while the server was stopped", Advice: "restore one by its name, without a target"}
	}
	return nil, first
}

// precedes reports whether a target may be of the time before a cluster, of which all are the backups: none of them was finished by then, or the cluster has no such
// timeline. Where another reason rules its backups out, as a history that cannot be read, a backup of the cluster before would be the wrong answer.
func precedes(target catalog.Target, all *catalog.Catalog) bool {
	if target.Timeline != 0 && !slices.Contains(all.Timelines(), target.Timeline) {
		return true
	}
	return !slices.ContainsFunc(all.Backups, func(b catalog.Backup) bool {
		switch finish, ok := b.FinishLSN(); target.Kind {
		case catalog.AtTime:
			return !b.Created().After(target.Time)
		case catalog.AtLSN:
			return !ok || finish <= target.LSN
		}
		return true
	})
}

func (t *theirs) backupFetch() *cobra.Command {
	var f fetchFlags
	cmd := &cobra.Command{
		Use:   "backup-fetch DIR [NAME|LATEST]",
		Short: "Restore a backup of pgBackRest, to the present or to a moment",
		Long: "Restores a backup into DIR, which must be empty or absent, as `holdfast backup-fetch` does with one of ours: the newest one, or with a target\n" +
			"the newest from which the target can be reached. Targets, tablespaces, --resume and what happens at the target are as there. With a target\n" +
			"PostgreSQL fetches WAL by `holdfast pgbackrest wal-fetch`, from the repository; pgBackRest is not needed.\n\n" +
			"Every file is compared with the checksum that pgBackRest keeps of it while it is written. Links in the data directory other than those\n" +
			"of tablespaces become directories and files.",
		Example: "  holdfast pgbackrest backup-fetch /srv/copy LATEST --dry-run\n" +
			"  holdfast pgbackrest backup-fetch /srv/copy 20260506-010002F_20260507-010001I\n" +
			"  holdfast pgbackrest --repo 2 backup-fetch /srv/copy --target latest",
		Args: t.args(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, p, err := t.start(cmd)
			if err != nil {
				return err
			}
			return t.fetch(cmd.Context(), s, p, &f, args)
		},
	}
	f.common(cmd.Flags())
	targetFlag(cmd)
	return cmd
}

// fetch restores a backup.
func (t *theirs) fetch(ctx context.Context, s *config.Settings, p *place, f *fetchFlags, args []string) error {
	r, target, err := t.request(s, f, args[0], p.before...)
	if err != nil {
		return err
	}
	name := ""
	if len(args) == 2 {
		name = args[1]
	}
	b, err := t.choose(ctx, s, p, name, target)
	if err != nil {
		return err
	}
	m, err := p.Manifest(ctx, b.info, b.backup)
	if err != nil {
		return err
	}
	if err := m.Describe(b.choice.Backup); err != nil {
		return err
	}
	t.log.Info(fmt.Sprintf("backup %s, finished at %s, for %s", m.Label, catalog.FormatTime(b.backup.Finished), b.choice.Target))
	for _, link := range m.Links {
		t.log.Info(fmt.Sprintf("%s was a symbolic link; what it led to is in the data directory now", link))
	}
	if n, first := m.Bad(); n > 0 {
		t.log.Warn(fmt.Sprintf("%d files of the backup had pages with wrong checksums already when it was taken, the first is %s. They are restored as they are, and no WAL is sure to put them right: "+
			"a backup from before may have them whole (backup-list --detail shows page_errors)", n, first))
	}
	objects, stored := m.Stored()
	r.Choice = b.choice
	r.Source = &restore.Source{Members: m.Members(), Batches: p.Batches(m), Objects: objects, Stored: stored, User: m.User, Damaged: pgbackrest.ErrDamaged}
	return t.carryOut(ctx, s, f, b.wal, r, p.outside)
}

func (t *theirs) walFetch() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "wal-fetch NAME DEST",
		Short: "Bring a WAL file back from a repository of pgBackRest (restore_command)",
		Long: "Brings the WAL file NAME to DEST, whole or not at all, compared with the checksum in its name. Segments are fetched ahead as by `holdfast\n" +
			"wal-fetch`, and the exit statuses are the same: 0; 74 the repository does not have the file; any other failure 75 on a standby and else 200.\n\n" +
			"Of several clusters that the stanza was for it is the one whose pg_control lies in the current directory, above DEST, or in PGDATA.",
		Example: "  restore_command = 'holdfast pgbackrest wal-fetch \"%f\" \"%p\"'",
		RunE: func(cmd *cobra.Command, args []string) error {
			debug.SetTraceback("crash") // as wal-fetch does
			s, err := t.fetchWAL(cmd, args)
			return t.toRestoreCommand(cmd.Context(), s, args, err)
		},
	}
	targetFlag(cmd)
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return t.toRestoreCommand(cmd.Context(), nil, nil, t.usage(cmd, err))
	})
	return cmd
}

// fetchWAL returns the settings as well, nil when there are none.
func (t *theirs) fetchWAL(cmd *cobra.Command, args []string) (*config.Settings, error) {
	if err := t.args(cobra.ExactArgs(2))(cmd, args); err != nil {
		return nil, err
	}
	s, p, err := t.start(cmd)
	if err != nil {
		return s, err
	}
	o, system := t.walOptions(s, p, args[1])
	o.Start = func() error {
		child := []string{"pgbackrest", "wal-prefetch", args[0], args[1]}
		cmd.Flags().Visit(func(f *pflag.Flag) { child = append(child, "--"+f.Name+"="+f.Value.String()) })
		return walfetch.Detach(t.env.Program, child...)
	}
	report, err := walfetch.Fetch(cmd.Context(), func(ctx context.Context) (walfetch.Archive, error) { return p.walOf(ctx, system) }, args[0], args[1], o)
	if err == nil {
		t.log.Debug(fmt.Sprintf("%s: %d bytes, fetched ahead: %t", report.Name, report.Bytes, report.Ahead))
	}
	return s, err
}

// walOptions says how WAL is fetched to dest, and of which cluster: 0 for the current one of the stanza.
func (t *theirs) walOptions(s *config.Settings, p *place, dest string) (walfetch.Options, uint64) {
	o := t.fetchOptions(s)
	o.Location = p.location
	for _, dir := range []string{".", filepath.Dir(filepath.Dir(dest)), s.Postgres.DataDir} {
		if dir == "" {
			continue
		}
		content, err := readFile(filepath.Join(dir, control.Name), 1<<20)
		if err != nil {
			continue
		}
		if c, err := control.Decode(content); err == nil {
			o.Location += ", system identifier " + strconv.FormatUint(c.SystemIdentifier, 10)
			return o, c.SystemIdentifier
		}
	}
	return o, 0
}

// walOf opens the WAL of the cluster with that system identifier, or of the current one for 0.
func (p *place) walOf(ctx context.Context, system uint64) (walfetch.Archive, error) {
	i, err := p.WALInfo(ctx)
	if err != nil {
		return nil, err
	}
	if system == 0 {
		system = i.Clusters[len(i.Clusters)-1].SystemIdentifier
	}
	var all walsOf
	for _, c := range i.Of(system) {
		all = append(all, p.WAL(i, c))
	}
	if len(all) == 0 {
		return nil, &advised{fmt.Errorf("the repository has no WAL of the cluster with system identifier %d, which %s is of", system, control.Name),
			"look whether it is the stanza of this cluster: " + p.location}
	}
	return all, nil
}

// walsOf is the WAL of a cluster that a stanza was for more than once, the newest first.
type walsOf []*archive.Archive

// OpenWAL implements walfetch.Archive.
func (all walsOf) OpenWAL(ctx context.Context, name string) (r io.ReadCloser, err error) {
	for _, a := range all {
		if r, err = a.OpenWAL(ctx, name); !errors.Is(err, fs.ErrNotExist) {
			return r, err
		}
	}
	return nil, err
}

// walPrefetch is what walFetch starts.
func (t *theirs) walPrefetch() *cobra.Command {
	cmd := &cobra.Command{
		Use:    "wal-prefetch NAME DEST",
		Short:  "Fetch the segments after NAME ahead, as wal-fetch does by itself",
		Hidden: true,
		Args:   t.args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, p, err := t.start(cmd)
			if err != nil {
				return err
			}
			o, system := t.walOptions(s, p, args[1])
			wal, err := p.walOf(cmd.Context(), system)
			if err != nil {
				return err
			}
			n, err := walfetch.Ahead(cmd.Context(), wal, args[1], o)
			t.log.Debug(fmt.Sprintf("fetched %d segments ahead", n))
			return err
		},
	}
	targetFlag(cmd)
	return cmd
}
