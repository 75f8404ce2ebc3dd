import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.io.InputStream;
import java.net.HttpURLConnection;
import java.net.InetSocketAddress;
import java.net.URL;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;

/**
 * The JDK's own server and client: a dispatcher thread accepts and hands requests to a pool of 16
 * threads, whose calls share the JDK's cache of kept-alive connections.
 */
public class Front {
    private static String back;
    private static int number;

    public static void main(String[] arguments) throws IOException {
        // Head and body leave in writes of their own: without this each would wait 40 ms for an ACK.
        System.setProperty("sun.net.httpserver.nodelay", "true");
        // The cache keeps 5 connections by default.
        System.setProperty("http.maxConnections", "16");
        back = "http://127.0.0.1:" + arguments[1];
        var address = new InetSocketAddress("127.0.0.1", Integer.parseInt(arguments[0]));
        var server = HttpServer.create(address, 512);
        server.setExecutor(Executors.newFixedThreadPool(16));
        server.createContext("/", Front::forward);
        server.start();
        Executors.newSingleThreadScheduledExecutor()
                .scheduleWithFixedDelay(Front::background, 0, 50, TimeUnit.MILLISECONDS);
    }

    private static byte[] ask(String path) throws IOException {
        var call = (HttpURLConnection) new URL(back + path).openConnection();
        // Reading to the end gives the connection back to the cache.
        try (InputStream body = call.getInputStream()) {
            return body.readAllBytes();
        }
    }

    private static void forward(HttpExchange exchange) throws IOException {
        byte[] body = ask(exchange.getRequestURI().getPath());
        exchange.sendResponseHeaders(200, body.length);
        exchange.getResponseBody().write(body);
        exchange.close();
    }

    private static void background() {
        try {
            ask("/background/" + number++);
        } catch (IOException error) {
            // An exception that leaves a scheduled task ends its repetition.
            System.err.println(error);
        }
    }
}
