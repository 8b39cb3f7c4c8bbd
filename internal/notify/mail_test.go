package notify_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/http/httptest"
	"net/mail"
	"strings"
	"testing"

	"holdfast/internal/notify"
)

// A smtpServer takes one message at a time, as RFC 5321 has it.
type smtpServer struct {
	auth     string // methods that it offers; "" for none
	starttls bool
	secure   bool // from the start
	refuse   string
	conf     *tls.Config

	got []string // the commands that came, and the messages
}

// serve starts s and returns its address, and whom to trust.
func serve(t *testing.T, s *smtpServer) (string, *x509.CertPool) {
	t.Helper()
	web := httptest.NewTLSServer(nil) // has a certificate for 127.0.0.1
	web.Close()
	roots := x509.NewCertPool()
	roots.AddCert(web.Certificate())
	s.conf = &tls.Config{Certificates: web.TLS.Certificates}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.talk(conn)
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String(), roots
}

func (s *smtpServer) talk(raw net.Conn) {
	conn, safe := raw, s.secure
	defer func() { conn.Close() }()
	if safe {
		conn = tls.Server(raw, s.conf)
	}
	r := bufio.NewReader(conn)
	say := func(format string, args ...any) { fmt.Fprintf(conn, format+"\r\n", args...) }
	hear := func() string {
		text, err := r.ReadString('\n')
		if err != nil {
			return ""
		}
		return strings.TrimRight(text, "\r\n")
	}
	secret := func(coded string) string {
		text, err := base64.StdEncoding.DecodeString(coded)
		if err != nil {
			return err.Error()
		}
		return strings.ReplaceAll(string(text), "\x00", "/")
	}
	say("220 here")
	for {
		text := hear()
		if text == "" {
			return
		}
		verb, rest, _ := strings.Cut(text, " ")
		if s.refuse != "" && strings.HasPrefix(text, s.refuse) {
			say("550 no: %s", text)
			continue
		}
		switch verb {
		case "EHLO":
			s.got = append(s.got, text)
			say("250-here")
			if s.starttls && !safe {
				say("250-STARTTLS")
			}
			if s.auth != "" {
				say("250-AUTH %s", s.auth)
			}
			say("250 8BITMIME")
		case "STARTTLS":
			say("220 go on")
			conn, safe = tls.Server(raw, s.conf), true
			r = bufio.NewReader(conn)
			s.got = append(s.got, "TLS")
		case "AUTH":
			method, first, _ := strings.Cut(rest, " ")
			if method == "LOGIN" {
				say("334 %s", base64.StdEncoding.EncodeToString([]byte("Username:")))
				user := secret(hear())
				say("334 %s", base64.StdEncoding.EncodeToString([]byte("Password:")))
				s.got = append(s.got, "LOGIN "+user+" "+secret(hear()))
			} else {
				s.got = append(s.got, method+" "+secret(first))
			}
			say("235 welcome")
		case "DATA":
			say("354 go on")
			var b strings.Builder
			for {
				text := hear()
				if text == "." || text == "" && b.Len() > 1<<20 {
					break
				}
				b.WriteString(strings.TrimPrefix(text, ".") + "\r\n")
			}
			s.got = append(s.got, b.String())
			say("250 taken")
		case "QUIT":
			say("221 bye")
			return
		default:
			s.got = append(s.got, text)
			say("250 fine")
		}
	}
}

// One of several addresses that is no more does not keep the alert from the others.
func TestMailReachesThoseWhoAreThere(t *testing.T) {
	server := smtpServer{refuse: "RCPT TO:<gone@example.com>"}
	address, _ := serve(t, &server)
	m := &notify.Mail{Server: "smtp://" + address, From: "backup@example.com", To: "gone@example.com, b@example.com"}
	e := event()
	said, err := m.Send(t.Context(), &e)
	if err != nil || said != "taken by 127.0.0.1, but for gone@example.com" {
		t.Errorf("got %q, %v", said, err)
	}
	if got := strings.Join(server.got, " "); !strings.Contains(got, "RCPT TO:<b@example.com>") || !strings.Contains(got, "Subject:") {
		t.Errorf("dialogue %q", got)
	}
}

func TestMailIsSent(t *testing.T) {
	for _, c := range []struct {
		server   smtpServer
		scheme   string
		user     string
		dialogue string
	}{
		{smtpServer{}, "smtp", "", "EHLO db1 MAIL"},
		{smtpServer{starttls: true}, "smtp", "", "EHLO db1 TLS EHLO db1 MAIL"},
		{smtpServer{starttls: true, auth: "LOGIN PLAIN"}, "smtp", "me", "EHLO db1 TLS EHLO db1 PLAIN /me/hush MAIL"},
		{smtpServer{starttls: true, auth: "LOGIN XOAUTH2"}, "smtp", "me", "EHLO db1 TLS EHLO db1 LOGIN me hush MAIL"},
		{smtpServer{secure: true, auth: "PLAIN"}, "smtps", "me", "EHLO db1 PLAIN /me/hush MAIL"},
	} {
		address, roots := serve(t, &c.server)
		m := &notify.Mail{Server: c.scheme + "://" + address, User: c.user, Password: "hush", From: "Backups <backup@example.com>", To: "a@example.com, Ops <b@example.com>", Roots: roots}
		e := event()
		e.Summary = "Wörter\r\nBcc: x@example.com"
		e.Detail = "a line\n.\n.dots " + strings.Repeat("long ", 50)
		if said, err := m.Send(t.Context(), &e); err != nil || said != "taken by 127.0.0.1" {
			t.Errorf("%s: %q, %v", c.dialogue, said, err)
			continue
		}
		got := c.server.got
		if dialogue := strings.Join(got[:len(got)-1], " "); !strings.HasPrefix(dialogue, c.dialogue) ||
			!strings.HasSuffix(dialogue, "FROM:<backup@example.com> BODY=8BITMIME RCPT TO:<a@example.com> RCPT TO:<b@example.com>") {
			t.Errorf("dialogue %q, want %q", dialogue, c.dialogue)
		}
		msg, err := mail.ReadMessage(strings.NewReader(got[len(got)-1]))
		if err != nil {
			t.Fatal(err)
		}
		subject, err := new(mime.WordDecoder).DecodeHeader(msg.Header.Get("Subject"))
		if err != nil || !strings.HasPrefix(subject, "[holdfast] backup-push failed on db1: Wörter") || msg.Header.Get("Bcc") != "" {
			t.Errorf("subject %q, %v, head %v", subject, err, msg.Header)
		}
		if list, err := msg.Header.AddressList("To"); err != nil || len(list) != 2 {
			t.Errorf("to %v, %v", list, err)
		}
		body, err := io.ReadAll(quotedprintable.NewReader(msg.Body))
		if text := strings.ReplaceAll(string(body), "\r\n", "\n"); err != nil || !strings.HasPrefix(text, e.Text()) {
			t.Errorf("body %q (%v), want %q", text, err, e.Text())
		}
	}
}

// A password goes over TLS whose certificate is right, and is in no error; what the server refuses for good is not tried again.
func TestMailFails(t *testing.T) {
	for _, c := range []struct {
		server smtpServer
		trust  bool
		user   string
		final  bool
		want   string
	}{
		{smtpServer{starttls: true, auth: "PLAIN"}, false, "me", false, "certificate"},
		{smtpServer{auth: "GSSAPI"}, true, "me", true, "knows none of PLAIN"},
		{smtpServer{}, true, "me", true, "takes no login"},
		{smtpServer{auth: "PLAIN", refuse: "AUTH"}, true, "me", true, "answered 550"},
		{smtpServer{refuse: "RCPT"}, true, "", true, "answered 550"},
	} {
		address, roots := serve(t, &c.server)
		m := &notify.Mail{Server: "smtp://" + address, User: c.user, Password: "hush", From: "backup@example.com", To: "a@example.com"}
		if c.trust {
			m.Roots = roots
		}
		e := event()
		_, err := m.Send(t.Context(), &e)
		if final := (*notify.FinalError)(nil); err == nil || !strings.Contains(err.Error(), c.want) || errors.As(err, &final) != c.final {
			t.Errorf("got %v, want %q, final: %v", err, c.want, c.final)
		} else if text := err.Error(); strings.Contains(text, "hush") || strings.Contains(text, base64.StdEncoding.EncodeToString([]byte("\x00me\x00hush"))) {
			t.Errorf("the password shows: %v", err)
		}
		for _, got := range c.server.got {
			if strings.HasPrefix(got, "MAIL") && c.user != "" {
				t.Errorf("mail without the login: %q", c.server.got)
			}
		}
	}
}
