package notify

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// maxAnswer is how many bytes of an answer are looked at.
const maxAnswer = 4 << 10

// post sends one request to a secret address, and follows no redirection: what is posted, and the address, are for the receiver alone.
func post(ctx context.Context, client *http.Client, to string, head http.Header, body []byte) (string, error) {
	address, err := url.Parse(to)
	if err != nil {
		return "", &FinalError{errors.New("the address is not a URL")} // err repeats it
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(body))
	if err != nil {
		return "", &FinalError{errors.New("the address is not a URL")}
	}
	req.Header = head
	req.Header.Set("User-Agent", "holdfast")
	c := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	if client != nil {
		c.Transport = client.Transport
	}
	res, err := c.Do(req)
	if err != nil {
		if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
			err = wrapped.Err // without the address
		}
		return "", fmt.Errorf("post to %s: %w", address.Hostname(), err)
	}
	defer res.Body.Close() // only read
	text, _ := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	said := strconv.Itoa(res.StatusCode)
	if words := cut(line(string(text)), 120); words != "" && !repeats(string(text), address) {
		said += " " + words
	}
	if res.StatusCode/100 == 2 {
		return said, nil
	}
	err = fmt.Errorf("%s answered %s", address.Hostname(), said)
	switch res.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return said, err
	}
	if res.StatusCode/100 == 5 {
		return said, err
	}
	return said, &FinalError{err}
}

// repeats reports whether a text has something of what may be secret in an address.
func repeats(text string, u *url.URL) bool {
	secret := strings.FieldsFunc(u.Path+"/"+u.RawPath, func(r rune) bool { return r == '/' })
	for name, values := range u.Query() {
		secret = append(append(secret, name), values...)
	}
	if u.User != nil {
		password, _ := u.User.Password()
		secret = append(secret, u.User.Username(), password)
	}
	for _, s := range secret {
		if len(s) >= 4 && strings.Contains(text, s) {
			return true
		}
	}
	return false
}

// Slack posts to what takes Slack's incoming webhooks, as Mattermost and Rocket.Chat do too
// (https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks).
type Slack struct {
	URL    string       // secret
	Client *http.Client // nil for one of its own
}

// Name implements Sender.
func (*Slack) Name() string { return "slack" }

// Send implements Sender.
func (s *Slack) Send(ctx context.Context, e *Event) (string, error) {
	sign := map[Result]string{Failed: ":red_circle:", Absent: ":red_circle:", Late: ":large_yellow_circle:", Recovered: ":large_green_circle:", Succeeded: ":large_green_circle:"}[e.Result]
	// What stands between < and > is a link or calls people, and & begins an entity; a row of ` would end the block.
	plain := strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "```", "'''")
	text := fmt.Sprintf("%s *%s*\n```\n%s\n```", sign, strings.ReplaceAll(plain.Replace(e.Title()), "*", "·"), plain.Replace(cut(strings.TrimSpace(e.Text()), 3000)))
	if e.Link != "" {
		text += "\n" + plain.Replace(e.Link)
	}
	body, err := json.Marshal(map[string]string{"text": text})
	if err != nil {
		return "", &FinalError{err}
	}
	return post(ctx, s.Client, s.URL, http.Header{"Content-Type": {"application/json"}}, body)
}

// Webhook posts events as JSON. With a secret it signs them as https://www.standardwebhooks.com says, for whose receivers there are libraries: webhook-id is the same for
// all tries of one event, and webhook-timestamp, in seconds, is that of the try. A receiver that refuses what is older than some minutes, and an id that it has seen, cannot be told the
// same twice by somebody who listened.
type Webhook struct {
	URL    string       // secret
	Secret string       // of the signature, "" for none; behind whsec_ it is base64, else as it is
	Client *http.Client // nil for one of its own
	Now    func() time.Time
}

// Name implements Sender.
func (*Webhook) Name() string { return "webhook" }

// key returns the bytes that sign.
func (w *Webhook) key() ([]byte, error) {
	coded, ok := strings.CutPrefix(w.Secret, "whsec_")
	if !ok {
		return []byte(w.Secret), nil
	}
	key, err := base64.StdEncoding.DecodeString(coded)
	if err != nil || len(key) == 0 {
		return nil, &FinalError{errors.New("the secret behind whsec_ is not base64")}
	}
	return key, nil
}

// Send implements Sender.
func (w *Webhook) Send(ctx context.Context, e *Event) (string, error) {
	body, err := json.Marshal(e)
	if err != nil {
		return "", &FinalError{err}
	}
	now := time.Now
	if w.Now != nil {
		now = w.Now
	}
	// The same event has the same id, whoever tries again: it is of what it says.
	sum := sha256.Sum256(body)
	id, at := "msg_"+base64.RawURLEncoding.EncodeToString(sum[:16]), strconv.FormatInt(now().Unix(), 10)
	head := http.Header{"Content-Type": {"application/json"}, "Webhook-Id": {id}, "Webhook-Timestamp": {at}}
	if w.Secret != "" {
		key, err := w.key()
		if err != nil {
			return "", err
		}
		mac := hmac.New(sha256.New, key)
		fmt.Fprintf(mac, "%s.%s.%s", id, at, body)
		head.Set("Webhook-Signature", "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	return post(ctx, w.Client, w.URL, head, body)
}

// The ways in which a Ping speaks.
const (
	Healthchecks = "healthchecks" // of https://healthchecks.io/docs/http_api: start, success and failure, with the report as the body
	Snitch       = "snitch"       // of https://deadmanssnitch.com/docs: success alone
)

// Ping is a dead man's switch: a service that raises an alarm when it was not told in time that a job succeeded.
type Ping struct {
	URL     string // secret
	Style   string // Healthchecks or Snitch; "" is Healthchecks
	Client  *http.Client
	Options Options

	run string // of one run, between Start and its end
}

// maxReport is how many bytes of a report a ping carries: what healthchecks.io keeps of every plan.
const maxReport = 10000

// Start says that a job begins. It is tried once.
func (p *Ping) Start(ctx context.Context) error {
	if p.Style == Snitch {
		return nil
	}
	p.run = newUUID()
	_, err := once(ctx, cmp.Or(p.Options.Try, defaultTry), func(ctx context.Context) (string, error) { return p.ping(ctx, "/start", "") })
	return err
}

// Done says that a job has succeeded.
func (p *Ping) Done(ctx context.Context, report string) error { return p.end(ctx, "", report) }

// Fail says that a job has failed; where the style knows only success it says nothing.
func (p *Ping) Fail(ctx context.Context, report string) error {
	if p.Style == Snitch {
		return nil
	}
	return p.end(ctx, "/fail", report)
}

func (p *Ping) end(ctx context.Context, how, report string) error {
	_, err := again(ctx, "ping", p.Options, func(ctx context.Context) (string, error) { return p.ping(ctx, how, report) })
	return err
}

func (p *Ping) ping(ctx context.Context, how, report string) (string, error) {
	if len(report) > maxReport {
		report = report[:maxReport]
	}
	if p.Style == Snitch {
		form := url.Values{"m": {cut(line(report), 200)}}
		return post(ctx, p.Client, p.URL, http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}, []byte(form.Encode()))
	}
	u, err := url.Parse(p.URL)
	if err != nil {
		return "", &FinalError{errors.New("the address is not a URL")}
	}
	if how != "" {
		u = u.JoinPath(how)
	}
	if p.run != "" {
		q := u.Query()
		q.Set("rid", p.run) // so that runs of several hosts are not taken for one
		u.RawQuery = q.Encode()
	}
	return post(ctx, p.Client, u.String(), http.Header{"Content-Type": {"text/plain; charset=utf-8"}}, []byte(strings.ToValidUTF8(report, "?")))
}

// newUUID returns a random UUID, version 4 (RFC 9562).
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
