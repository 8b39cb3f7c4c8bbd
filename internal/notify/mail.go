package notify

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"net/smtp"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Mail sends mail through one server (RFC 5321). Where the server offers STARTTLS it is used, with its certificate verified; a password goes over TLS only, or to this host itself.
type Mail struct {
	Server         string // smtp://host:port or smtps://host:port, TLS from the start; the ports are 25, with a user 587, and 465 where none is given
	User, Password string // "" logs in to nothing
	From           string
	To             string // addresses with commas between them

	Roots *x509.CertPool // whom to trust; nil for those of the system
}

// Name implements Sender.
func (*Mail) Name() string { return "mail" }

// Check says what is wrong with the addresses, nil where nothing is.
func (m *Mail) Check() error {
	_, _, err := m.server()
	_, fromErr := mail.ParseAddress(m.From)
	if fromErr != nil {
		fromErr = fmt.Errorf("%q is no address to send from", m.From)
	}
	_, toErr := mail.ParseAddressList(m.To)
	if toErr != nil {
		toErr = fmt.Errorf("%q is no list of addresses to send to", m.To)
	}
	return errors.Join(err, fromErr, toErr)
}

// server returns the server's address, and whether TLS is there from the start.
func (m *Mail) server() (address string, secure bool, err error) {
	u, err := url.Parse(m.Server)
	if err != nil || u.Scheme != "smtp" && u.Scheme != "smtps" || u.Hostname() == "" || u.User != nil || u.Path != "" || u.RawQuery != "" {
		return "", false, errors.New("the mail server must be smtp://host:port or smtps://host:port")
	}
	port := "25"
	switch {
	case u.Scheme == "smtps":
		port = "465"
	case m.User != "":
		port = "587"
	}
	return net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), port)), u.Scheme == "smtps", nil
}

// Send implements Sender.
func (m *Mail) Send(ctx context.Context, e *Event) (string, error) {
	if err := m.Check(); err != nil {
		return "", &FinalError{err}
	}
	said, err := m.send(ctx, e)
	var answer *textproto.Error
	if errors.As(err, &answer) {
		words := line(answer.Msg)
		for _, secret := range []string{m.Password, base64.StdEncoding.EncodeToString([]byte(m.Password)), base64.StdEncoding.EncodeToString([]byte("\x00" + m.User + "\x00" + m.Password))} {
			if m.Password != "" && strings.Contains(words, secret) {
				words = "(its words repeat the password)"
			}
		}
		err = fmt.Errorf("the mail server answered %d %s", answer.Code, cut(words, 200))
		if answer.Code/100 == 5 {
			err = &FinalError{err}
		}
	}
	return said, err
}

func (m *Mail) send(ctx context.Context, e *Event) (string, error) {
	address, secure, err := m.server()
	if err != nil {
		return "", err
	}
	host, _, _ := net.SplitHostPort(address)
	conf := &tls.Config{ServerName: host, RootCAs: m.Roots}
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	conn := raw
	if secure {
		conn = tls.Client(raw, conf)
	}
	defer conn.Close() // the message was taken, or was not, by then
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	c, err := smtp.NewClient(conn, host)
	if err != nil {
		return "", err
	}
	if err := c.Hello(hostName(e.Host)); err != nil {
		return "", err
	}
	if ok, _ := c.Extension("STARTTLS"); ok && !secure {
		if err := c.StartTLS(conf); err != nil {
			return "", fmt.Errorf("STARTTLS: %w", err)
		}
	}
	if m.User != "" {
		if err := m.login(c, host); err != nil {
			return "", fmt.Errorf("log in as %s: %w", m.User, err)
		}
	}
	from, err := mail.ParseAddress(m.From)
	if err != nil {
		return "", err
	}
	to, err := mail.ParseAddressList(m.To)
	if err != nil {
		return "", err
	}
	if err := c.Mail(from.Address); err != nil {
		return "", err
	}
	var refused []string
	var refusal error
	for _, one := range to { // an address that is no more keeps the others from nothing
		var answer *textproto.Error
		switch err := c.Rcpt(one.Address); {
		case errors.As(err, &answer):
			refused, refusal = append(refused, one.Address), err
		case err != nil:
			return "", err
		}
	}
	if len(refused) == len(to) {
		return "", refusal
	}
	w, err := c.Data()
	if err != nil {
		return "", err
	}
	text, err := m.message(e, from, to)
	if err != nil {
		return "", err
	}
	if _, err := w.Write(text); err != nil {
		return "", err
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	_ = c.Quit() // the server has the message, whatever it answers to that
	if len(refused) > 0 {
		return fmt.Sprintf("taken by %s, but for %s", host, strings.Join(refused, ", ")), nil
	}
	return "taken by " + host, nil
}

// hostName is a host's name as the server may be told it.
func hostName(host string) string {
	if host == "" || strings.ContainsFunc(host, func(r rune) bool {
		return r != '-' && r != '.' && (r < '0' || r > '9') && (r|0x20 < 'a' || r|0x20 > 'z')
	}) {
		return "localhost"
	}
	return host
}

// login authenticates by the best method that the server has.
func (m *Mail) login(c *smtp.Client, host string) error {
	_, safe := c.TLSConnectionState()
	ip := net.ParseIP(host)
	if !safe && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return &FinalError{errors.New("the server has no TLS: no password goes there")}
	}
	ok, list := c.Extension("AUTH")
	methods := strings.Fields(strings.ToUpper(list))
	switch {
	case !ok:
		return &FinalError{errors.New("the server takes no login")}
	case slices.Contains(methods, "PLAIN"):
		return c.Auth(&plain{m.User, m.Password})
	case slices.Contains(methods, "LOGIN"):
		return c.Auth(&login{user: m.User, password: m.Password})
	case slices.Contains(methods, "CRAM-MD5"):
		return c.Auth(smtp.CRAMMD5Auth(m.User, m.Password))
	}
	return &FinalError{fmt.Errorf("the server knows none of PLAIN, LOGIN and CRAM-MD5, but %s", list)}
}

// plain is RFC 4616. Whether the connection is safe was settled before.
type plain struct{ user, password string }

func (a *plain) Start(*smtp.ServerInfo) (string, []byte, error) {
	return "PLAIN", []byte("\x00" + a.user + "\x00" + a.password), nil
}

func (a *plain) Next(_ []byte, more bool) ([]byte, error) {
	if more {
		return nil, errors.New("the server asks for more than PLAIN has")
	}
	return nil, nil
}

// login is what Microsoft's servers want (draft-murchison-sasl-login): the user, then the password, whatever the questions are.
type login struct {
	user, password string
	asked          int
}

func (a *login) Start(*smtp.ServerInfo) (string, []byte, error) { return "LOGIN", nil, nil }

func (a *login) Next(_ []byte, more bool) ([]byte, error) {
	if !more {
		return nil, nil
	}
	a.asked++
	switch a.asked {
	case 1:
		return []byte(a.user), nil
	case 2:
		return []byte(a.password), nil
	}
	return nil, errors.New("the server asks for more than LOGIN has")
}

// message is the mail: RFC 5322 with the text quoted-printable.
func (m *Mail) message(e *Event, from *mail.Address, to []*mail.Address) ([]byte, error) {
	var b bytes.Buffer
	list := make([]string, len(to))
	for i, one := range to {
		list[i] = one.String()
	}
	_, domain, _ := strings.Cut(from.Address, "@")
	for _, head := range [][2]string{
		{"From", from.String()}, {"To", strings.Join(list, ",\r\n\t")}, {"Subject", mime.QEncoding.Encode("utf-8", "[holdfast] "+e.Title())},
		{"Date", e.At.UTC().Format(time.RFC1123Z)}, {"Message-ID", "<" + strings.ToLower(rand.Text()) + "@" + domain + ">"},
		{"Auto-Submitted", "auto-generated"}, // RFC 3834: no answers of people who are away
		{"MIME-Version", "1.0"}, {"Content-Type", "text/plain; charset=utf-8"}, {"Content-Transfer-Encoding", "quoted-printable"},
	} {
		fmt.Fprintf(&b, "%s: %s\r\n", head[0], head[1])
	}
	b.WriteString("\r\n")
	w := quotedprintable.NewWriter(&b)
	if _, err := w.Write([]byte(strings.ReplaceAll(e.Text(), "\n", "\r\n"))); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
