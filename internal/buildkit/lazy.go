package buildkit

import (
	"context"
	"sync"
)

// A lazy is a value that the first who needs it makes, while others wait. A failure is told to who
// met it and not kept: the next one tries again. The zero lazy is ready to use.
type lazy[T any] struct {
	mu     sync.Mutex
	making chan struct{} // nil, or closed when the making has ended
	made   bool
	value  T
}

func (l *lazy[T]) get(ctx context.Context, create func(context.Context) (T, error)) (T, error) {
	l.mu.Lock()
	for !l.made && l.making != nil {
		making := l.making
		l.mu.Unlock()
		select {
		case <-making:
		case <-ctx.Done():
			var zero T
			return zero, context.Cause(ctx)
		}
		l.mu.Lock()
	}
	if l.made {
		defer l.mu.Unlock()
		return l.value, nil
	}
	making := make(chan struct{})
	l.making = making
	l.mu.Unlock()

	value, err := create(ctx)

	l.mu.Lock()
	defer l.mu.Unlock()
	l.making = nil
	close(making)
	if err == nil {
		l.value, l.made = value, true
	}
	return value, err
}

// peek returns the value if it has been made.
func (l *lazy[T]) peek() (value T, made bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.value, l.made
}
