package main

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
)

// A proxy stands between kiln and a build daemon and notes when solves begin and end. It forwards
// calls as they are, without knowing what they say.
type proxy struct {
	upstream *grpc.ClientConn
	server   *grpc.Server

	mu     sync.Mutex
	solves []call
}

// A call is one call of a server.
type call struct {
	name         string
	begun, ended time.Time
}

const (
	solveMethod = "/moby.buildkit.v1.Control/Solve"
	maxMessage  = 64 << 20
)

// startProxy serves socket and forwards to the daemon at address, until close.
func startProxy(socket, address string) (*proxy, error) {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{}), grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)))
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	p := &proxy{upstream: conn}
	p.server = grpc.NewServer(grpc.ForceServerCodecV2(rawCodec{}), grpc.UnknownServiceHandler(p.forward),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage))
	go func() { _ = p.server.Serve(l) }() // ends with Stop
	return p, nil
}

func (p *proxy) close() error {
	p.server.Stop()
	return p.upstream.Close()
}

// take returns the solves that have ended since the last call.
func (p *proxy) take() []call {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.solves
	p.solves = nil
	return s
}

// forward forwards one call of any kind.
func (p *proxy) forward(_ any, down grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(down)
	begun := time.Now()
	md, _ := metadata.FromIncomingContext(down.Context())
	ctx, cancel := context.WithCancel(metadata.NewOutgoingContext(down.Context(), md.Copy()))
	defer cancel()
	up, err := p.upstream.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return err
	}
	go func() { // ends with the call
		if errors.Is(pump(up.SendMsg, down.RecvMsg), io.EOF) {
			_ = up.CloseSend()
		}
	}()
	if header, err := up.Header(); err == nil {
		if err := down.SendHeader(header); err != nil {
			return err
		}
	}
	err = pump(down.SendMsg, up.RecvMsg)
	if strings.EqualFold(method, solveMethod) {
		p.mu.Lock()
		p.solves = append(p.solves, call{method, begun, time.Now()})
		p.mu.Unlock()
	}
	down.SetTrailer(up.Trailer())
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// pump passes messages on until there are no more.
func pump(send, receive func(any) error) error {
	for {
		var m []byte
		if err := receive(&m); err != nil {
			return err
		}
		if err := send(&m); err != nil {
			return err
		}
	}
}

// rawCodec leaves messages as they are.
type rawCodec struct{}

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

// Name is that of the codec of the messages.
func (rawCodec) Name() string { return "proto" }
