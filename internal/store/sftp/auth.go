package sftp

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"
)

// clientConfig reads known hosts and keys. done ends the connection to the agent, which is used until we are known to the server.
func (o *Options) clientConfig(address string) (config *ssh.ClientConfig, done func(), err error) {
	check, err := knownhosts.New(o.knownHosts()...)
	if err != nil {
		return nil, nil, &settingError{fmt.Sprintf("known hosts: %v", err)}
	}
	config = &ssh.ClientConfig{
		User: o.User,
		HostKeyCallback: func(host string, remote net.Addr, key ssh.PublicKey) error {
			return o.hostKey(check(host, remote, key), key)
		},
		HostKeyAlgorithms: o.hostKeyAlgorithms(check, address),
		ClientVersion:     "SSH-2.0-holdfast",
	}
	done = func() {}
	var signers []ssh.Signer
	if o.PrivateKeyFile != "" {
		signer, err := o.privateKey()
		if err != nil {
			return nil, nil, &settingError{err.Error()}
		}
		signers = append(signers, signer)
	}
	if o.AgentSocket != "" {
		c, err := net.Dial("unix", o.AgentSocket)
		switch {
		case err == nil:
			done = func() { c.Close() }
			held, err := agent.NewClient(c).Signers()
			if err != nil {
				o.Logger.Warn("SFTP: the agent at SSH_AUTH_SOCK shows no keys", "err", err)
			}
			signers = append(signers, held...)
		case o.PrivateKeyFile == "" && o.Password == "":
			return nil, nil, &settingError{fmt.Sprintf("there is no agent at SSH_AUTH_SOCK: %v", err)}
		}
	}
	if len(signers) > 0 {
		config.Auth = append(config.Auth, ssh.PublicKeys(signers...))
	}
	if o.Password != "" {
		config.Auth = append(config.Auth, ssh.Password(o.Password), ssh.KeyboardInteractive(
			func(_, _ string, questions []string, echos []bool) ([]string, error) {
				answers := make([]string, len(questions))
				for i := range questions {
					if echos[i] {
						return nil, errors.New("the server asks for more than a password")
					}
					answers[i] = o.Password
				}
				return answers, nil
			}))
	}
	if len(config.Auth) == 0 {
		done()
		return nil, nil, &settingError{"the agent at SSH_AUTH_SOCK holds no keys: add one with ssh-add, or set SSH_PRIVATE_KEY_PATH"}
	}
	return config, done, nil
}

// privateKey reads the private key.
func (o *Options) privateKey() (ssh.Signer, error) {
	pem, err := os.ReadFile(o.PrivateKeyFile)
	if err != nil {
		return nil, fmt.Errorf("private key (SSH_PRIVATE_KEY_PATH): %w", err)
	}
	signer, err := ssh.ParsePrivateKey(pem)
	if locked := (*ssh.PassphraseMissingError)(nil); errors.As(err, &locked) {
		if o.Passphrase == "" {
			return nil, fmt.Errorf("private key %s (SSH_PRIVATE_KEY_PATH) is protected by a passphrase, and none is set", o.PrivateKeyFile)
		}
		signer, err = ssh.ParsePrivateKeyWithPassphrase(pem, []byte(o.Passphrase))
		if err != nil {
			return nil, fmt.Errorf("private key %s (SSH_PRIVATE_KEY_PATH) does not open with the passphrase that is set", o.PrivateKeyFile)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("private key %s (SSH_PRIVATE_KEY_PATH): %w", o.PrivateKeyFile, err)
	}
	return signer, nil
}

// hostKeyAlgorithms asks the server for a key of a kind that we know of it: it may have others, which would read as changed ones. nil is
// any kind. Where an authority signs keys any may come.
func (o *Options) hostKeyAlgorithms(check ssh.HostKeyCallback, address string) (algorithms []string) {
	for _, file := range o.knownHosts() {
		if text, err := os.ReadFile(file); err == nil && bytes.Contains(text, []byte("@cert-authority")) {
			return nil
		}
	}
	nobodys, err := ssh.NewPublicKey(make(ed25519.PublicKey, ed25519.PublicKeySize))
	if err != nil {
		return nil
	}
	var other *knownhosts.KeyError
	if !errors.As(check(address, &net.TCPAddr{}, nobodys), &other) {
		return nil
	}
	for _, known := range other.Want {
		if kind := known.Key.Type(); kind == ssh.KeyAlgoRSA {
			algorithms = append(algorithms, ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSASHA512)
		} else {
			algorithms = append(algorithms, kind)
		}
	}
	return algorithms
}

// hostKey says what is wrong with a host's key.
func (o *Options) hostKey(err error, key ssh.PublicKey) error {
	if err == nil {
		return nil
	}
	where := knownhosts.Normalize(net.JoinHostPort(o.Host, strconv.Itoa(o.Port)))
	kind := strings.TrimPrefix(key.Type(), "ssh-")
	shown := fmt.Sprintf("%s (%s)", ssh.FingerprintSHA256(key), kind)
	var other *knownhosts.KeyError
	var revoked *knownhosts.RevokedError
	switch {
	case errors.As(err, &revoked):
		return &hostKeyError{fmt.Sprintf("the host key of %s is %s, which %s:%d revokes", where, shown, revoked.Revoked.Filename, revoked.Revoked.Line)}
	case errors.As(err, &other) && len(other.Want) > 0:
		text := fmt.Sprintf("THE HOST KEY OF %s HAS CHANGED, somebody may be listening: it is %s, and was", where, shown)
		for _, known := range other.Want {
			text += fmt.Sprintf(" %s (%s:%d)", ssh.FingerprintSHA256(known.Key), known.Filename, known.Line)
		}
		return &hostKeyError{fmt.Sprintf("%s; if the host was really set up anew: ssh-keygen -R '%s' -f %s", text, where, other.Want[0].Filename)}
	case errors.As(err, &other):
		port := ""
		if o.Port != 22 {
			port = fmt.Sprintf("-p %d ", o.Port)
		}
		return &hostKeyError{fmt.Sprintf("the host key of %s is not known: it is %s; if that is right: ssh-keyscan %s%s >> %s", where, shown, port, o.Host, o.KnownHosts[0])}
	}
	return &hostKeyError{fmt.Sprintf("the host key of %s, %s, is not accepted: %v", where, shown, err)}
}

// refused says why the beginning of a connection failed.
func (o *Options) refused(address string, err error) error {
	var key *hostKeyError
	switch {
	case errors.As(err, &key):
		return key
	case strings.Contains(err.Error(), "unable to authenticate"):
		var with []string
		for what, given := range map[string]string{"the key in SSH_PRIVATE_KEY_PATH": o.PrivateKeyFile, "the keys of the agent": o.AgentSocket, "SSH_PASSWORD": o.Password} {
			if given != "" {
				with = append(with, what)
			}
		}
		slices.Sort(with)
		return &authError{fmt.Sprintf("%s does not let user %s in with %s: see SSH_USERNAME, and authorized_keys there", address, o.User, strings.Join(with, " or "))}
	}
	return &dialError{address, err}
}
