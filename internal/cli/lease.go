package cli

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"path"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"holdfast/internal/agent"
	"holdfast/internal/archive"
	"holdfast/internal/config"
	"holdfast/internal/lease"
	"holdfast/internal/lease/consul"
	"holdfast/internal/lease/etcd"
	"holdfast/internal/lease/kube"
	"holdfast/internal/lease/object"
	"holdfast/internal/lease/postgres"
	"holdfast/internal/pg/server"
)

// What leases are for.
const (
	leaseDelete    = "delete"
	leasePush      = "backup-push"
	leaseMerge     = "backup-merge"
	leaseRetention = "retention"
	leaseVerify    = "verify"
	leaseDrill     = "drill"
)

// alone runs what only one of several hosts is to do: where the server's role and the lease of job let it, and where it is for a slot of the schedule that nobody has
// done. Otherwise it says why not, and that is no error. run works with the archive that it is given: what it commits there counts only as long as the lease is ours.
func (a *app) alone(ctx context.Context, s *config.Settings, job string, ar *archive.Archive, run func(ctx context.Context, ar *archive.Archive) error) error {
	host, err := leaseHost(s)
	if err != nil {
		return err
	}
	run = a.inSlot(host, run)
	if done, err := a.slotIsDone(ctx, ar); err != nil || done {
		return err
	}
	switch not, err := a.notHere(ctx, s); {
	case err != nil:
		return err
	case not != "":
		a.log.Info(not)
		a.passes()
		a.child.settles(agent.NotHere, "")
		return nil
	}
	if s.Lease.Service() == "none" {
		a.begins(ctx)
		return run(ctx, ar)
	}
	k, err := a.leases(ctx, s, ar, host)
	if err != nil {
		return err
	}
	me := lease.Holder{Host: host, PID: os.Getpid(), Job: job, Since: time.Now().UTC().Truncate(time.Second)}
	var verdict error // with which a job ends that is done
	err = lease.Hold(ctx, k, job, me, s.Lease.TTL, func(ctx context.Context, g lease.Grant) error {
		if done, err := a.slotIsDone(ctx, ar); err != nil || done { // by who had the lease until now
			return cmp.Or(err, errSlotDone)
		}
		if err := a.slotHasCome(ctx, ar); err != nil {
			return err
		}
		fence := g.(*object.Grant)
		a.begins(ctx)
		a.log.Debug("holding the lease " + fence.ID())
		err := run(ctx, ar.Fenced(fence))
		if a.found(ctx, err) {
			verdict, err = err, nil
		}
		return err
	})
	var held *lease.HeldError
	var kept *lease.ReleaseError
	switch {
	case errors.Is(err, errSlotDone):
		return nil
	case errors.As(err, &held):
		a.log.Info(held.Error())
		a.passes()
		a.child.settles(agent.Held, held.Holder.Host)
		return nil
	case errors.As(err, &kept):
		a.log.Warn(fmt.Sprintf("%v; it ends by itself in %s", kept, s.Lease.TTL))
		return verdict
	}
	return cmp.Or(err, verdict)
}

// leaseHost is the name of this host in leases.
func leaseHost(s *config.Settings) (string, error) {
	if s.Lease.Host != "" {
		return s.Lease.Host, nil
	}
	return os.Hostname()
}

// leases opens what keeps leases. They, or what fences when a service keeps them, lie in the first storage alone, as nothing is decided by two. ar finishes what other
// hosts have begun to commit.
func (a *app) leases(ctx context.Context, s *config.Settings, ar *archive.Archive, host string) (*object.Keeper, error) {
	members, err := a.stores(ctx, s, brief)
	if err != nil {
		return nil, err
	}
	first := members[0].Store
	service, err := a.leaseService(s)
	if err != nil {
		return nil, err
	}
	clock := archive.New(first, archive.Options{})
	now := func(ctx context.Context) (time.Time, error) {
		t, err := clock.Now(ctx)
		if !t.IsZero() && errors.Is(err, fs.ErrPermission) { // what it was read off stays, where nothing may be removed
			err = nil
		}
		return t, err
	}
	return object.New(first, now, object.Options{
		Service: service,
		Lax:     s.InUse()[0].S3.Endpoint != "", // not AWS, whose conditions hold
		Finish: func(ctx context.Context, id, object string, content []byte) (bool, error) {
			why, err := ar.Finish(ctx, id, object, content, host)
			switch {
			case err != nil:
				return false, err
			case why != "":
				a.log.Warn(fmt.Sprintf("what another host had stored and not committed is no backup, and was removed: %s: %s", object, why))
				return false, nil
			}
			a.log.Info("made a backup of what another host had stored, and had not come to commit: " + object)
			a.helped = strings.TrimSuffix(path.Base(object), path.Base(ar.SentinelName("")))
			return true, nil
		},
	}), nil
}

// leaseService opens the service that keeps leases, nil where the archive itself does.
func (a *app) leaseService(s *config.Settings) (lease.Keeper, error) {
	switch service := s.Lease.Service(); {
	case service == "postgres":
		return postgres.New(connString(server.ConfigFromEnv(s.Postgres.Lookup)))
	case strings.HasPrefix(service, "postgres"):
		return postgres.New(service)
	}
	kind, secure, hosts, prefix := s.Lease.Address()
	scheme := "http://"
	if secure {
		scheme = "https://"
	}
	var addresses []string
	for _, h := range hosts {
		addresses = append(addresses, scheme+h)
	}
	prefix = cmp.Or(prefix, "holdfast/"+short(s.Storage.Location())) + "/"
	switch kind {
	case "etcd":
		user, password, _ := strings.Cut(s.Lease.Secret, ":")
		return etcd.New(addresses, prefix, etcd.Options{User: user, Password: password}), nil
	case "consul":
		return consul.New(addresses, prefix, consul.Options{Token: s.Lease.Secret}), nil
	case "kube":
		return a.kubernetes(hosts[0], strings.TrimSuffix(prefix, "/"))
	}
	return nil, nil
}

// connString writes c as libpq reads it.
func connString(c server.Config) string {
	var b strings.Builder
	quote := strings.NewReplacer(`\`, `\\`, `'`, `\'`)
	for _, keyword := range slices.Sorted(maps.Keys(c)) {
		fmt.Fprintf(&b, "%s='%s' ", keyword, quote.Replace(c[keyword]))
	}
	return b.String()
}

// serviceAccount is where a container of Kubernetes finds who it is.
const serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount/"

// kubernetes opens the Kubernetes that this process runs in.
func (a *app) kubernetes(namespace, name string) (lease.Keeper, error) {
	env := map[string]string{}
	for _, e := range a.env.Environ {
		if key, value, ok := strings.Cut(e, "="); ok {
			env[key] = value
		}
	}
	host, port := env["KUBERNETES_SERVICE_HOST"], cmp.Or(env["KUBERNETES_SERVICE_PORT"], "443")
	if host == "" {
		return nil, &advised{errors.New("HOLDFAST_LEASE is in Kubernetes, and this is no container there: KUBERNETES_SERVICE_HOST is not set"),
			"run it in a pod whose service account may get, create and update leases in " + namespace}
	}
	ca, err := os.ReadFile(serviceAccount + "ca.crt")
	if err != nil {
		return nil, fmt.Errorf("HOLDFAST_LEASE is in Kubernetes: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("HOLDFAST_LEASE is in Kubernetes: %sca.crt holds no certificate", serviceAccount)
	}
	return kube.New("https://"+net.JoinHostPort(host, port), namespace, name, kube.Options{
		HTTP: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}},
		Token: func() (string, error) {
			b, err := os.ReadFile(serviceAccount + "token")
			return strings.TrimSpace(string(b)), err
		},
	}), nil
}

// notHere says why the server's role forbids to do anything, "" where it does not.
func (a *app) notHere(ctx context.Context, s *config.Settings) (string, error) {
	const primary, standby = "This is the primary: nothing to do.", "This is a standby: nothing to do."
	role := s.Lease.Role
	if role == "" || role == "any" {
		return "", nil
	}
	conn, err := server.Connect(ctx, server.ConfigFromEnv(s.Postgres.Lookup))
	if err != nil {
		return "", fmt.Errorf("HOLDFAST_ROLE is %s: %w", role, err)
	}
	defer conn.Close() // only asked
	is, err := conn.Standby(ctx)
	if err != nil {
		return "", err
	}
	switch {
	case is && role == "primary":
		return standby, nil
	case is, role == "primary":
		return "", nil
	case role == "replica":
		return primary, nil
	}
	n, err := conn.Standbys(ctx)
	if err != nil || n == 0 {
		return "", err
	}
	return primary, nil
}

func (a *app) lease() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lease COMMAND",
		Short: "Show which host does which job, or take a job away from its host",
		Long: "Where several hosts have the same line of cron one of them is to do what it says. With HOLDFAST_LEASE or HOLDFAST_ROLE set each asks for the lease of the\n" +
			"job first: backup-push, backup-merge, retention (for `retention apply`), delete (with --confirm), verify and drill. Who has it renews it until the job is done;\n" +
			"who dies or stands still loses it after HOLDFAST_LEASE_TTL, and can commit no backup from then on. docs/operations.md says more.",
		Example: "  holdfast lease show\n  holdfast lease release backup-push",
		Args:    cobra.ArbitraryArgs,
		RunE:    a.onlyBelow("it is `lease show` or `lease release`"),
	}
	cmd.AddCommand(a.leaseShow(), a.leaseRelease())
	return cmd
}

// openLeases opens what keeps leases for people who look at them: where nothing is set, those in the archive.
func (a *app) openLeases(cmd *cobra.Command) (*object.Keeper, string, error) {
	s, err := a.load(cmd)
	if err != nil {
		return nil, "", err
	}
	host, err := leaseHost(s)
	if err != nil {
		return nil, "", err
	}
	ar, err := a.openArchive(cmd.Context(), s, toRead)
	if err != nil {
		return nil, "", err
	}
	k, err := a.leases(cmd.Context(), s, ar, host)
	return k, host, err
}

func (a *app) leaseShow() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show [JOB]",
		Short: "Show who has which lease, or had it last",
		Long: "Prints for each job who has its lease, since when by that host's clock, and the last sign of life by the storage's. `free` is a lease that nobody has, `dead` one\n" +
			"whose holder gives no sign of life any more, `commits` one whose holder has stored a backup and not committed it: the next backup-push does.",
		Example: "  holdfast lease show\n  holdfast lease show backup-push --json",
		Args:    a.args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, jobs []string) error {
			k, _, err := a.openLeases(cmd)
			if err != nil {
				return err
			}
			if len(jobs) == 0 {
				if jobs, err = k.Jobs(cmd.Context()); err != nil {
					return err
				}
			}
			return a.showLeases(cmd.Context(), k, jobs, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	targetFlag(cmd)
	return cmd
}

// shownLease is a lease as JSON shows it.
type shownLease struct {
	State string `json:"state"`
	*object.Status
}

func (a *app) showLeases(ctx context.Context, k *object.Keeper, jobs []string, asJSON bool) error {
	rows := []shownLease{}
	for _, job := range jobs {
		st, err := k.Look(ctx, job)
		if err != nil {
			return err
		}
		state := "dead"
		switch {
		case st.Held:
			state = "held"
		case st.Commits != "":
			state = "commits"
		case st.Ended != "" || st.Token == 0:
			state = "free"
		}
		rows = append(rows, shownLease{state, st})
	}
	if asJSON {
		return a.printJSON(rows)
	}
	if len(rows) == 0 {
		a.log.Info("no lease was ever taken")
		return nil
	}
	w := tabwriter.NewWriter(a.env.Stdout, 0, 0, 1, ' ', 0)
	fmt.Fprintln(w, "job\tstate\thost\tpid\tsince\tsign_of_life\ttoken")
	date := func(t time.Time) string {
		if t.IsZero() {
			return "-"
		}
		return t.UTC().Format(time.RFC3339)
	}
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%d\n", r.Job, r.State, cell(cmp.Or(r.Host, "-")), r.PID, date(r.Since), date(r.Beat), r.Token)
	}
	return w.Flush()
}

func (a *app) leaseRelease() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "release JOB",
		Short: "Take a lease away from the host that has it",
		Long: "Ends the lease of that job, whoever has it: its holder commits nothing any more, and stops as soon as it notices. The next one that asks gets it at\n" +
			"once, without waiting for HOLDFAST_LEASE_TTL. Where a service keeps leases its own entry stays until that ends.\n\n" +
			"Exit status: 0 nobody has it now; 1 it could not be ended.",
		Example: "  holdfast lease release backup-push",
		Args:    a.args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if jobs := []string{leasePush, leaseMerge, leaseRetention, leaseDelete, leaseVerify, leaseDrill}; !slices.Contains(jobs, args[0]) {
				return a.usage(cmd, fmt.Errorf("%q has no lease: it is one of %s", args[0], jobs))
			}
			k, host, err := a.openLeases(cmd)
			if err != nil {
				return err
			}
			switch taken, err := k.Break(cmd.Context(), args[0], host); {
			case err != nil:
				return err
			case taken:
				a.log.Info("nobody holds the lease of " + args[0] + " any more")
			default:
				a.log.Info("nobody holds the lease of " + args[0])
			}
			return nil
		},
	}
	targetFlag(cmd)
	return cmd
}
