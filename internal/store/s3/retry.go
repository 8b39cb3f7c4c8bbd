package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/smithy-go/middleware"
)

// retryer is the SDK's way of trying again, bounded in time. It tells of each new try: an operator must not wonder what is
// being waited for.
type retryer struct {
	*retry.Standard
	patience time.Duration
	log      *slog.Logger
}

func (s *Store) retryer() aws.Retryer {
	return &retryer{patience: s.o.Patience, log: s.o.Logger, Standard: retry.NewStandard(func(r *retry.StandardOptions) {
		r.MaxAttempts = s.o.MaxRetries + 1
		r.MaxBackoff = s.o.MaxBackoff
		r.RateLimiter = ratelimit.None // else many parts that fail at once use up each other's retries
		// The SDK has every failure of a connection pass in time, and few of the answers.
		r.Retryables = slices.Concat([]retry.IsErrorRetryable{retry.IsErrorRetryableFunc(s.neverReached)}, r.Retryables,
			[]retry.IsErrorRetryable{retry.IsErrorRetryableFunc(s.mayPass)})
	})}
}

// neverReached says no to what a wrong setting does to connections.
func (s *Store) neverReached(err error) aws.Ternary {
	_, status, header := codes(err)
	if stays, _ := s.unreached(err); stays || s.wantsTLS(status, header) {
		return aws.FalseTernary
	}
	return aws.UnknownTernary
}

// mayPass says yes to an answer that breaks off, and to refusals that are not about the request.
func (s *Store) mayPass(err error) aws.Ternary {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return aws.TrueTernary
	}
	code, status, header := codes(err)
	if kind, _ := s.judge(code, status, header); kind == nil && (code != "" || status >= 400) && code != conflict {
		return aws.TrueTernary
	}
	return aws.UnknownTernary
}

type failuresKey struct{}

// rememberFailures gives each call of the SDK a place for the time of its first failure.
func rememberFailures(stack *middleware.Stack) error {
	return stack.Initialize.Add(middleware.InitializeMiddlewareFunc("RememberFailures",
		func(ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler) (middleware.InitializeOutput, middleware.Metadata, error) {
			return next.HandleInitialize(context.WithValue(ctx, failuresKey{}, new(time.Time)), in)
		}), middleware.Before)
}

// GetRetryToken implements aws.RetryerV2. It is asked before each new try, and has none to give when patience has ended.
func (r *retryer) GetRetryToken(ctx context.Context, err error) (func(error) error, error) {
	if first, ok := ctx.Value(failuresKey{}).(*time.Time); ok {
		if first.IsZero() {
			*first = time.Now()
		} else if since := time.Since(*first); since >= r.patience {
			return nil, fmt.Errorf("given up %s after the first failure", since.Round(time.Second))
		}
	}
	return r.Standard.GetRetryToken(ctx, err)
}

// RetryDelay implements aws.Retryer. It is asked before each wait.
func (r *retryer) RetryDelay(attempt int, err error) (time.Duration, error) {
	d, delayErr := r.Standard.RetryDelay(attempt, err)
	if delayErr == nil {
		r.log.Warn(fmt.Sprintf("S3: attempt %d of %d failed, the next one in %s", attempt, r.MaxAttempts(), d.Round(time.Millisecond)), "err", reason(err))
	}
	return d, delayErr
}

// reason is an error of the SDK in a few words.
func reason(err error) string {
	if code, status, _ := codes(err); code != "" {
		return fmt.Sprintf("%s (status %d)", code, status)
	}
	if network := (*url.Error)(nil); errors.As(err, &network) {
		return network.Error()
	}
	return err.Error()
}

// pause waits for the given time, or until ctx is done.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
