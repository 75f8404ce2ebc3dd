// grpc-go: a goroutine for each call, and all share what leads to the back: one connection by
// gRPC, or with a third argument net/http's pool, which speaks HTTP/1. Of Debian's
// golang-google-grpc-dev, whose release knows no codec for a server but by the deprecated option.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
)

// plain passes bytes on as they are.
type plain struct{}

func (plain) Marshal(v interface{}) ([]byte, error) { return *v.(*[]byte), nil }
func (plain) Unmarshal(data []byte, v interface{}) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}
func (plain) Name() string   { return "plain" }
func (plain) String() string { return "plain" }

type back func(ctx context.Context, method string, request []byte) ([]byte, error)

func byGrpc(port string) back {
	connection, err := grpc.Dial("127.0.0.1:"+port, grpc.WithInsecure(),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(plain{})))
	if err != nil {
		log.Fatal(err)
	}
	return func(ctx context.Context, method string, request []byte) (answer []byte, err error) {
		err = connection.Invoke(ctx, method, &request, &answer)
		return answer, err
	}
}

func byHttp(port string) back {
	client := &http.Client{Transport: &http.Transport{
		MaxConnsPerHost:     16,
		MaxIdleConnsPerHost: 16,
	}}
	return func(_ context.Context, method string, _ []byte) ([]byte, error) {
		response, err := client.Get("http://127.0.0.1:" + port + strings.TrimPrefix(method, "/fidelity"))
		if err != nil {
			return nil, err
		}
		defer response.Body.Close()
		return io.ReadAll(response.Body)
	}
}

func main() {
	var ask back
	if len(os.Args) > 3 {
		ask = byHttp(os.Args[2])
	} else {
		ask = byGrpc(os.Args[2])
	}
	go func() {
		for number := 0; ; number++ {
			method := fmt.Sprintf("/fidelity/background/%d", number)
			if _, err := ask(context.Background(), method, []byte("?")); err != nil {
				log.Print(err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}()
	forward := func(_ interface{}, stream grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(stream)
		var request []byte
		if err := stream.RecvMsg(&request); err != nil {
			return err
		}
		answer, err := ask(stream.Context(), method, request)
		if err != nil {
			return err
		}
		return stream.SendMsg(&answer)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer(grpc.CustomCodec(plain{}), grpc.UnknownServiceHandler(forward))
	log.Fatal(server.Serve(listener))
}
