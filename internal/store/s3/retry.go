package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/smithy-go/middleware"

	"holdfast/internal/store/patience"
)

// retryer has the SDK try again with our patience. What may pass the SDK decides, with a word of ours.
type retryer struct {
	*retry.Standard
	policy *patience.Policy
}

func (s *Store) retryer() aws.Retryer {
	return &retryer{policy: s.retry, Standard: retry.NewStandard(func(r *retry.StandardOptions) {
		r.MaxAttempts = s.o.MaxRetries + 1
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

type triesKey struct{}

// countTries gives each call of the SDK a place for its failures.
func countTries(stack *middleware.Stack) error {
	return stack.Initialize.Add(middleware.InitializeMiddlewareFunc("CountTries",
		func(ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler) (middleware.InitializeOutput, middleware.Metadata, error) {
			return next.HandleInitialize(context.WithValue(ctx, triesKey{}, new(patience.Tries)), in)
		}), middleware.Before)
}

var errGivenUp = errors.New("given up")

// GetRetryToken implements aws.RetryerV2. It is asked before each new try, waits until its time has come, and has none to give when
// patience has ended.
func (r *retryer) GetRetryToken(ctx context.Context, err error) (func(error) error, error) {
	tries, ok := ctx.Value(triesKey{}).(*patience.Tries)
	if !ok {
		tries = new(patience.Tries)
	}
	if r.policy.Again(ctx, tries, awsmiddleware.GetOperationName(ctx), err) == nil {
		return r.Standard.GetRetryToken(ctx, err)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return nil, errGivenUp
}

// RetryDelay implements aws.Retryer. GetRetryToken has waited.
func (r *retryer) RetryDelay(int, error) (time.Duration, error) { return 0, nil }

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
