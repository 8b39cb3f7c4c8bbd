package pgbackrest

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Settings are pgBackRest's own options, as its environment and its configuration files give them. The zero value has none.
type Settings struct {
	environ map[string]string            // by option
	files   map[string]map[string]string // by section, then option
	sources map[string]string            // of options in files, by section and option: the file
}

// Environ is the prefix of variables of the environment that are options: PGBACKREST_REPO1_PATH is repo1-path.
const Environ = "PGBACKREST_"

// ReadEnviron takes the options among the variables of an environment.
func (s *Settings) ReadEnviron(environ []string) {
	s.environ = map[string]string{}
	for _, e := range environ {
		name, value, _ := strings.Cut(e, "=")
		name, ours := strings.CutPrefix(name, Environ)
		option := strings.ToLower(strings.ReplaceAll(name, "_", "-"))
		switch {
		case !ours:
		case value == "":
			delete(s.environ, option)
		default:
			s.environ[option] = value
		}
	}
}

// ReadFile takes the options in a configuration file: sections in brackets, lines of key=value, comments behind # at the start of a line. Sections for
// single commands ([global:restore]) do not say where a repository is, and are passed over.
func (s *Settings) ReadFile(name string, content []byte) error {
	if s.files == nil {
		s.files, s.sources = map[string]map[string]string{}, map[string]string{}
	}
	section, number := "", 0
	for line := range strings.Lines(string(content)) {
		number++
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#':
			continue
		case line[0] == '[':
			inner, ok := strings.CutSuffix(line[1:], "]")
			if !ok {
				return fmt.Errorf("%s:%d: a section ends without its bracket", name, number)
			}
			section = inner
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if key = strings.TrimSpace(key); !ok || key == "" || section == "" {
			return fmt.Errorf("%s:%d: want a section, and in it lines of option=value", name, number) // the line may hold a secret
		}
		if strings.Contains(section, ":") {
			continue
		}
		if s.files[section] == nil {
			s.files[section] = map[string]string{}
		}
		key = current(key)
		s.files[section][key] = strings.TrimSpace(value)
		s.sources[section+" "+key] = fmt.Sprintf("%s:%d", name, number)
	}
	return nil
}

// current gives an option the name that it has today: those of repositories had no number once.
func current(option string) string {
	if rest, ok := strings.CutPrefix(option, "repo-"); ok {
		option = "repo1-" + rest
	}
	if repo, rest, ok := strings.Cut(option, "-"); ok && strings.HasPrefix(repo, "repo") {
		switch rest {
		case "s3-host", "azure-host":
			rest = "storage-host"
		case "s3-port", "azure-port":
			rest = "storage-port"
		case "s3-ca-file", "azure-ca-file":
			rest = "storage-ca-file"
		case "s3-verify-tls", "s3-verify-ssl", "azure-verify-tls":
			rest = "storage-verify-tls"
		}
		option = repo + "-" + rest
	}
	return option
}

// Repo returns the options of a repository by its number, from 1, as they are for a stanza: what the environment says, else what the stanza's section of
// the files does, else the section global. Names come without repo1-.
func (s *Settings) Repo(stanza string, number int) Repo {
	prefix := "repo" + strconv.Itoa(number) + "-"
	r := Repo{number: number, options: map[string]string{}, sources: map[string]string{}}
	for _, section := range []string{"global", stanza} {
		for option, value := range s.files[section] {
			if name, ok := strings.CutPrefix(option, prefix); ok {
				r.options[name], r.sources[name] = value, s.sources[section+" "+option]
			}
		}
	}
	for option, value := range s.environ {
		if name, ok := strings.CutPrefix(current(option), prefix); ok {
			r.options[name], r.sources[name] = value, "environment"
		}
	}
	return r
}

// Stanzas returns the sections that are stanzas.
func (s *Settings) Stanzas() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(s.files)), func(name string) bool { return name == "global" })
}

// Repo is what the options say of one repository.
type Repo struct {
	number  int
	options map[string]string
	sources map[string]string // of each option: environment, or file and line
}

// Named reports whether the options say where the repository is.
func (r Repo) Named() bool { return r.options["path"] != "" || r.options["type"] != "" }

// Get returns an option, its default where it is not given. Names come without repo1-.
func (r Repo) Get(option string) string {
	if v, ok := r.options[option]; ok && v != "" {
		return v
	}
	return map[string]string{
		"type": "posix", "path": "/var/lib/pgbackrest", "cipher-type": "none", "s3-key-type": "shared", "s3-uri-style": "host", "storage-port": "443",
		"storage-verify-tls": "y", "gcs-key-type": "service", "gcs-endpoint": "storage.googleapis.com", "azure-key-type": "shared",
		"azure-endpoint": "blob.core.windows.net", "azure-uri-style": "host", "sftp-host-port": "22",
	}[option]
}

// Name is what an option is called in a file.
func (r Repo) Name(option string) string { return "repo" + strconv.Itoa(r.number) + "-" + option }

// Source says where an option was given; "" where it was not.
func (r Repo) Source(option string) string { return r.sources[option] }

// FromEnviron returns the names of the variables that gave options, sorted.
func (r Repo) FromEnviron() (names []string) {
	for option, source := range r.sources {
		if source == "environment" {
			names = append(names, Environ+strings.ToUpper(strings.ReplaceAll(r.Name(option), "-", "_")))
		}
	}
	slices.Sort(names)
	return names
}

// OptionError says that an option is missing, or cannot be honoured.
type OptionError struct {
	Option string
	Source string // where it was given; "" where it was not
	Reason string
	Advice string
}

func (e *OptionError) Error() string {
	if e.Source == "" {
		return e.Option + " " + e.Reason
	}
	return e.Option + " (" + e.Source + ") " + e.Reason
}

// Hint says what to do.
func (e *OptionError) Hint() string { return e.Advice }

func (r Repo) bad(option, reason, advice string) error {
	return &OptionError{r.Name(option), r.Source(option), reason, advice}
}

// Passphrase returns that of the repository, "" where it is not encrypted.
func (r Repo) Passphrase() (string, error) {
	switch kind := r.Get("cipher-type"); {
	case kind == "none":
		return "", nil
	case kind != "aes-256-cbc":
		return "", r.bad("cipher-type", "is "+strconv.Quote(kind)+", which this release does not read", "it reads none and aes-256-cbc")
	case r.Get("cipher-pass") == "":
		return "", r.bad("cipher-pass", "is not set, and "+r.Name("cipher-type")+" is "+kind, "set it in pgbackrest.conf or as "+Environ+"REPO"+strconv.Itoa(r.number)+"_CIPHER_PASS")
	}
	return r.Get("cipher-pass"), nil
}

// Check returns why the repository cannot be reached from here.
func (r Repo) Check() error {
	kind := r.Get("type")
	if host := r.Get("host"); host != "" {
		return r.bad("host", "is "+strconv.Quote(host)+": the repository is on another host, behind pgBackRest's own protocol",
			"run this there, or reach the repository by SFTP: WALG_SSH_PREFIX=ssh://"+host+r.Get("path"))
	}
	var needed []string
	switch kind {
	case "posix", "cifs":
		if !filepath.IsAbs(r.Get("path")) {
			return r.bad("path", "is no absolute path", "correct it")
		}
		return nil
	case "s3":
		if needed = []string{"s3-bucket", "s3-endpoint", "s3-region"}; r.Get("s3-key-type") == "shared" {
			needed = append(needed, "s3-key", "s3-key-secret")
		}
	case "gcs":
		if needed = []string{"gcs-bucket"}; r.Get("gcs-key-type") == "token" {
			return r.bad("gcs-key-type", "is token, which this release does not know", "use service, or auto")
		} else if r.Get("gcs-key-type") == "service" {
			needed = append(needed, "gcs-key")
		}
	case "azure":
		if needed = []string{"azure-container", "azure-account"}; r.Get("azure-key-type") != "auto" {
			needed = append(needed, "azure-key")
		}
	case "sftp":
		needed = []string{"sftp-host", "sftp-host-user"}
	default:
		return r.bad("type", "is "+strconv.Quote(kind)+", which this release does not know", "it reads posix, cifs, s3, gcs, azure and sftp")
	}
	for _, option := range needed {
		if r.Get(option) == "" {
			return r.bad(option, "is not set, and "+r.Name("type")+" is "+kind, "set it in pgbackrest.conf or in the environment")
		}
	}
	if r.Get("storage-verify-tls") == "n" {
		return r.bad("storage-verify-tls", "is n: this release looks at certificates", "name the authority with "+r.Name("storage-ca-file"))
	}
	return nil
}
